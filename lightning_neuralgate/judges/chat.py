"""Chat models that can be asked: behind an endpoint of OpenAI's protocol, or in this process."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_neuralgate.errors import JudgeError
from lightning_neuralgate.hf.generation import without_generation_config
from lightning_neuralgate.hf.identity import model_checksum

Ask = Callable[[str], str]
"""A prompt -> what the model says."""

_RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_LONGEST_WAIT = 60.0
_LARGEST_REPLY = 1 << 22


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Stays where it was sent: a redirect would carry the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


class ChatEndpoint:
    """A chat model behind a server that speaks OpenAI's protocol: a prompt in, its text out, greedily.

    Overloaded servers and broken connections are tried again, after longer and longer waits (or as long as the server
    says); a wrong key or model is not.

    Args:
        base_url: up to and with the version, such as `http://localhost:8000/v1`.
        model: the model's name there.
        key_variable: environment variable that holds the key; no key is sent if it is None. The key is read at each call
            and stands in no message.
        max_tokens: length of a reply.
        timeout: seconds to wait for a reply.
        retries: how often to try again.
        wait: seconds before the first new try; each further one waits twice as long.

    Attributes:
        identity: what replies depend on beside the prompt.

    Raises:
        JudgeError: the address is no http or https URL, or the environment variable is not set.
        ValueError: a number that is not positive.

    Example:
        >>> ask = ChatEndpoint("http://localhost:8000/v1", "my-model", key_variable=None)
        >>> ask("Hello")  # doctest: +SKIP
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
        wait: float = 1.0,
    ) -> None:
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise JudgeError(f"'{base_url}' is no address of a server; expected http://... or https://...")
        if min(max_tokens, timeout) <= 0 or min(retries, wait) < 0:
            raise ValueError("max_tokens and timeout have to be above 0, retries and wait at least 0")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.key_variable = model, key_variable
        self.max_tokens, self.timeout, self.retries, self.wait = max_tokens, timeout, retries, wait
        self.identity = f"{self.url} {model} {max_tokens}"
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._headers()  # now, not after an hour of answering

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable)
            if not key:
                raise JudgeError(
                    f"the environment variable {self.key_variable} holds no key for {self.url}; set it, or say "
                    "key_variable=None for a server that wants none"
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def __call__(self, prompt: str) -> str:
        """What the model says to a prompt.

        Raises:
            JudgeError: the server refuses, cannot be reached after all retries, or does not reply as the protocol says.
        """
        content = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        # ASCII, because an answer may hold lone surrogates
        request = urllib.request.Request(self.url, json.dumps(content).encode("ascii"), self._headers(), method="POST")
        for attempt in range(self.retries + 1):
            pause = min(self.wait * 2**attempt, _LONGEST_WAIT)
            try:
                with self._opener.open(request, timeout=self.timeout) as reply:
                    return _said(reply.read(_LARGEST_REPLY))
            except urllib.error.HTTPError as error:
                with error:
                    trouble = f"HTTP {error.code}: {self._excerpt(error)}"
                    if error.code not in _RETRIED:
                        raise JudgeError(f"{self.url} refuses the request with {trouble}") from None
                    pause = _asked_pause(error.headers.get("Retry-After"), pause)
            except (OSError, http.client.HTTPException) as error:
                trouble = str(getattr(error, "reason", None) or error) or type(error).__name__
            except _BadReply as error:
                trouble = f"no reply as OpenAI's protocol has it: {error}"
            if attempt < self.retries:
                time.sleep(pause)
        raise JudgeError(f"{self.url} gave no reply in {self.retries + 1} tries; the last: {trouble}")

    def _excerpt(self, error: urllib.error.HTTPError) -> str:
        try:
            text = " ".join(error.read(1000).decode("utf-8", "replace").split())[:300]
        except (OSError, http.client.HTTPException):
            text = ""
        # servers repeat the key that they do not like
        key = os.environ.get(self.key_variable) if self.key_variable else None
        return text.replace(key, "(key)") if key else text


class _BadReply(Exception):
    """A reply that is not what the protocol says."""


def _said(reply: bytes) -> str:
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise _BadReply(repr(reply[:200]))
    return text


def _asked_pause(header: str | None, otherwise: float) -> float:
    try:
        return min(max(0.0, float(header or "")), _LONGEST_WAIT)
    except ValueError:  # a date, or nothing
        return otherwise


class LocalChat:
    """A chat model in this process: a prompt in, its text out, greedily.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; without a chat template the bare prompt is given.
        max_new_tokens: length of a reply.

    Example:
        >>> from lightning_neuralgate.models.smollm2 import load_smollm2
        >>> ask = LocalChat(*load_smollm2())  # doctest: +SKIP
    """

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int = 16) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model.eval(), tokenizer, max_new_tokens

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", max_new_tokens: int = 16) -> LocalChat:
        """A chat model from a folder or from the hub.

        Args:
            name: folder, or name on the hub.
            device: where it computes.
            max_new_tokens: length of a reply.

        Raises:
            JudgeError: there is no causal language model of that name.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise JudgeError(f"'{name}' cannot be loaded as a language model that judges: {error}") from error
        return cls(model.to(device), tokenizer, max_new_tokens)

    @property
    def identity(self) -> str:
        """What replies depend on beside the prompt; reads all weights."""
        return f"{model_checksum(self.model)} {self.tokenizer.chat_template} {self.max_new_tokens}"

    @torch.inference_mode()
    def __call__(self, prompt: str) -> str:
        """What the model says to a prompt."""
        text = prompt
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        ids = encoded["input_ids"].to(self.model.device)
        with without_generation_config(self.model):
            told = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
                tokenizer=self.tokenizer,
            )
        return str(self.tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True))
