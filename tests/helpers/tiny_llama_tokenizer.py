from __future__ import annotations

from transformers import LlamaTokenizer

_WORDS = ("Give", "the", "following", "image", "What", "is", "it", "INST", "Img", "</", "[", "##", "###", "<")


def tiny_llama_tokenizer(legacy: bool) -> LlamaTokenizer:
    """Return a tokenizer with a few words; other text is encoded as bytes, and texts start with `<s>`."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = []
    for word in _WORDS:
        for form in ("▁" + word, word if word != "###" else "##"):
            for end in range(2, len(form) + 1):
                merges.append((form[: end - 1], form[end - 1]))
    pieces += sorted({part for pair in merges for part in pair if len(part) == 1} | set(">]/:?."))
    pieces += ["".join(pair) for pair in dict.fromkeys(merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return LlamaTokenizer(vocabulary, list(dict.fromkeys(merges)), legacy=legacy, add_bos_token=True)
