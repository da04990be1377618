"""What a suite may ask: a function a task, from the run of a suite to its figures."""
