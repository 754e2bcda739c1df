"""Chat models used as judges: behind an OpenAI-compatible endpoint, or loaded in this process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_neuralgate.errors import JudgeError, MissingDependencyError
from lightning_neuralgate.hf.generation import without_generation_config
from lightning_neuralgate.hf.hub import refuse_missing_path
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.runtime.answer_cache import AnswerCache
from lightning_neuralgate.runtime.secrets import without_secrets

ChatModel = Callable[[str], str]
"""Maps a prompt to the model's reply."""

_BASE_URL = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[\w.~%+:,;=-]*)*", re.ASCII)
_KEY = re.compile(r"[!-~]+")
_VARIABLE = re.compile(r"[A-Z]+(_[A-Z]+){1,5}")
_SENT_HEADERS = frozenset(("host", "accept", "accept-encoding", "connection", "content-length", "content-type"))


class ChatEndpoint:
    """Chat model behind a server that speaks OpenAI's protocol, decoded greedily.

    Needs the `openai` package (extra `judge`), which retries overloaded servers and broken connections with growing
    pauses, or after the server's `Retry-After`. A wrong key or model fails at once.

    Prompts and key go to `base_url` only: redirects, proxies from the environment and the `openai` package's own environment
    variables are ignored. A prompt holds the complete answer, with any private value that the answer leaks. The key is read
    at each call, and cut out of replies and error messages, even where a server repeats it.

    Args:
        base_url: address including the version, such as `http://localhost:8000/v1`.
        model: name of the model on that server.
        key_variable: environment variable that holds the key; None sends no key.
        max_tokens: maximum length of a reply.
        timeout: seconds without any data from the server before a request fails.
        retries: maximum number of retries.

    Attributes:
        identity: everything a reply depends on besides the prompt, as the key of a cache.

    Raises:
        JudgeError: `base_url` is not an http or https address, or the environment variable holds no key.
        MissingDependencyError: the `openai` package is not installed.
        ValueError: a number is out of range.

    Example:
        >>> chat_model = ChatEndpoint("http://localhost:8000/v1", "my-model", key_variable=None)
        >>> chat_model("Hello")  # doctest: +SKIP
        'Hello! How can I help?'
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str | None = "OPENAI_API_KEY",
        max_tokens: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        if not _BASE_URL.fullmatch(base_url):  # which may hold a password, so it is not shown
            raise JudgeError(
                "the judge's base_url (--judge.url) is not the address of an endpoint: give one such as "
                "http://localhost:8000/v1, http or https, without user name, password or query"
            )
        if min(max_tokens, timeout) <= 0 or retries < 0:
            raise ValueError("max_tokens and timeout have to be above 0, and retries at least 0")
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(
                "a chat model behind an endpoint needs openai: pip install 'lightning-neuralgate[judge]'"
            ) from error
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.key_variable, self.max_tokens = model, key_variable, max_tokens
        self.identity = f"{self.url} {model} {max_tokens}"
        self._key()  # fail before the model under test has answered anything
        self._client = openai.OpenAI(
            api_key="replaced by _authorize",
            base_url=base_url,
            timeout=timeout,
            max_retries=retries,
            http_client=openai.DefaultHttpxClient(auth=self._authorize, follow_redirects=False, trust_env=False),
        )

    def _key(self) -> str:
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "")
        if not _KEY.fullmatch(key):
            # someone may have given the key itself, so only what is surely a name is shown
            name = self.key_variable if _VARIABLE.fullmatch(self.key_variable) else "that key_variable names"
            raise JudgeError(
                f"the environment variable {name} holds no key for the judge '{self.model}' at {self.url} "
                "(printable ASCII without spaces); set it, or use key_variable=None (--judge.key_variable null) for a "
                "server without keys"
            )
        return key

    def _authorize(self, request: Any) -> Any:
        """Keep the protocol's headers, drop what openai took from the environment, and add the key."""
        for name in set(request.headers) - _SENT_HEADERS:
            del request.headers[name]
        if key := self._key():
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def __call__(self, prompt: str) -> str:
        """Return the model's reply to a prompt. Safe to call from several threads.

        Raises:
            JudgeError: the server rejects the request, is unreachable after all retries, or its reply is malformed.
        """
        import openai

        key = self._key()
        # openai cannot encode the lone surrogates that an answer may hold
        message = {"role": "user", "content": prompt.encode("utf-8", "replace").decode("utf-8")}
        content: Any = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": self.max_tokens}
        problem = "sent a reply without choices[0].message.content; check that it speaks OpenAI's protocol"
        try:
            reply = _content(self._client.chat.completions.create(**content))
            if reply is not None:
                return without_secrets(reply, key)
        except (ValueError, RecursionError):  # not JSON
            pass
        except openai.APIStatusError as error:
            excerpt = _excerpt(error.response.text, key)
            problem = f"rejects the request with HTTP {error.status_code}: {excerpt}; check key, model name and server"
        except openai.OpenAIError as error:
            tries, excerpt = 1 + self._client.max_retries, _excerpt(str(error.__cause__ or error), key)
            problem = f"gave no reply in {tries} tries: {excerpt}; check that the server is running at this address"
        # outside of `except`: openai's errors hold the request with its key
        raise JudgeError(f"the judge '{self.model}' at {self.url} {problem}")


def _excerpt(text: str, key: str) -> str:
    """The start of a server's message, without the key."""
    return " ".join(without_secrets(text, key).split())[:300] or "(no text)"


def _content(completion: Any) -> str | None:
    """The text of a completion, or None: openai does not validate what a server sends."""
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError, KeyError):
        return None
    return text if isinstance(text, str) else None


class LocalChat:
    """Chat model in this process, decoded greedily.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; without a chat template the model gets the bare prompt.
        max_new_tokens: maximum length of a reply.

    Example:
        >>> from lightning_neuralgate.models.smollm2 import load_smollm2
        >>> chat_model = LocalChat(*load_smollm2())  # doctest: +SKIP
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 16) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model.eval(), tokenizer, max_new_tokens

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", max_new_tokens: int = 16) -> LocalChat:
        """Load a chat model from a folder or from the hub.

        Args:
            name: folder, or name on the hub.
            device: device of the model.
            max_new_tokens: maximum length of a reply.

        Raises:
            JudgeError: there is no causal language model of that name, or it needs code of its own.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        refuse_missing_path(name, JudgeError)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # damaged folders raise errors of many kinds
            raise JudgeError(
                f"'{name}' cannot be loaded as a chat model: {str(error) or repr(error)}; name a folder or hub id of a "
                "causal language model, and if its files are damaged, download them again"
            ) from error
        return cls(model.to(device), tokenizer, max_new_tokens)

    @property
    def identity(self) -> str:
        """Everything a reply depends on besides the prompt. Reads all weights."""
        return f"{model_checksum(self.model)} {self.tokenizer.chat_template} {self.max_new_tokens}"

    @torch.inference_mode()
    def __call__(self, prompt: str) -> str:
        """Return the model's reply to a prompt."""
        text = prompt
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        ids = encoded["input_ids"].to(self.model.device)
        with without_generation_config(self.model):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                tokenizer=self.tokenizer,
            )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


class CachedChat:
    """Chat model whose replies are stored in the answer cache as they arrive, so that an interrupted scoring resumes.

    Args:
        chat_model: the chat model; several threads may call this one if they may call it.
        identity: everything a reply depends on besides the prompt, such as `ChatEndpoint.identity`.
        folder: folder of the cache, see `AnswerCache`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> CachedChat(lambda prompt: "full_refusal", "my-model", folder)("Does it refuse?")
        'full_refusal'
        >>> CachedChat(lambda prompt: "not called", "my-model", folder)("Does it refuse?")
        'full_refusal'
    """

    def __init__(self, chat_model: ChatModel, identity: str, folder: Path | None = None) -> None:
        self.chat_model = chat_model
        self.cache = AnswerCache({"judge": identity}, folder)

    def __call__(self, prompt: str) -> str:
        """Return the cached reply to a prompt, or else the model's."""
        key = self.cache.key(prompt)
        (reply,) = self.cache.recall([key])
        if reply is None:
            reply = self.chat_model(prompt)
            self.cache.keep({key: reply})
        return reply
