"""Parts of the page of an evaluation: a file a part, each giving its template what it shows."""
