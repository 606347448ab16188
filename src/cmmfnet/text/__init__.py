"""Text: a prompt (prompt.py) into names, colours and tokens; captions; the vocabulary.

``--text`` is read by prompt.read_prompt, ``--text-file`` by prompt_files.picture_texts.
"""
