"""The bundled demo model, and everything that made it.

``config.json``, ``model.safetensors`` and the tokenizer's files beside this module are what ``train.py`` wrote from the
text that ``text.py`` generates. README.md in this folder says what the model can and cannot do, with its measured
accuracy. Nothing here is needed to run the model: hopformer loads the folder as it loads any other.
"""
