"""A Korean-English CLIP for Hugging Face Transformers.

Importing the package registers its classes with the Auto* API, so that `AutoModel.from_pretrained` and
`AutoProcessor.from_pretrained` find them.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

# From its module: transformers 5.17 exports a stand-in at the top level where torchvision is absent.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .configuration_ko_en_clip import KoEnClipConfig, KoEnClipResNetConfig, KoEnClipTextConfig, KoEnClipVisionConfig
from .image_processing_ko_en_clip import KoEnClipImageProcessor
from .modeling_ko_en_clip import (
    KoEnClipForImageClassification,
    KoEnClipModel,
    KoEnClipTextModelWithProjection,
    KoEnClipVisionModelWithProjection,
)
from .modeling_ko_en_clip_mae import KoEnClipForPreTraining
from .modeling_ko_en_clip_resnet import KoEnClipResNetModel
from .modeling_ko_en_clip_towers import KoEnClipTextModel, KoEnClipVisionModel
from .processing_ko_en_clip import KoEnClipProcessor
from .tokenization_ko_en_clip import KoEnClipTokenizerFast

__version__ = "0.1.0"

AutoConfig.register(KoEnClipConfig.model_type, KoEnClipConfig)
AutoConfig.register(KoEnClipResNetConfig.model_type, KoEnClipResNetConfig)
AutoConfig.register(KoEnClipTextConfig.model_type, KoEnClipTextConfig)
AutoConfig.register(KoEnClipVisionConfig.model_type, KoEnClipVisionConfig)
AutoModel.register(KoEnClipConfig, KoEnClipModel)
AutoModel.register(KoEnClipResNetConfig, KoEnClipResNetModel)
AutoModel.register(KoEnClipTextConfig, KoEnClipTextModel)
AutoModel.register(KoEnClipVisionConfig, KoEnClipVisionModel)
AutoModelForImageClassification.register(KoEnClipConfig, KoEnClipForImageClassification)
AutoModelForPreTraining.register(KoEnClipConfig, KoEnClipForPreTraining)
AutoModelForZeroShotImageClassification.register(KoEnClipConfig, KoEnClipModel)
AutoTokenizer.register(KoEnClipConfig, tokenizer_class=KoEnClipTokenizerFast)
AutoImageProcessor.register(KoEnClipConfig, image_processor_classes={"pil": KoEnClipImageProcessor})
AutoProcessor.register(KoEnClipConfig, KoEnClipProcessor)

__all__ = [
    "KoEnClipConfig",
    "KoEnClipForImageClassification",
    "KoEnClipForPreTraining",
    "KoEnClipImageProcessor",
    "KoEnClipModel",
    "KoEnClipProcessor",
    "KoEnClipResNetConfig",
    "KoEnClipResNetModel",
    "KoEnClipTextConfig",
    "KoEnClipTextModel",
    "KoEnClipTextModelWithProjection",
    "KoEnClipTokenizerFast",
    "KoEnClipVisionConfig",
    "KoEnClipVisionModel",
    "KoEnClipVisionModelWithProjection",
]
