"""A prompt as a turn of a chat: what the files say, as transformers would write it."""

import json

import pytest

from diffjax.config import Contract
from diffjax.data import features
from diffjax.tokenizers import HuggingFaceTokenizer, PrunedTokenizer, chat, load
from diffjax.types import Example, UserError

MARKS = (
  "{% for m in messages %}\n  {% if m %}\n<|{{ m['role'] }}|>{{ m.content | trim }}\n"
  "  {% endif %}\n{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSTRUCTED = (
  "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif -%}"
  "{%- for m in messages -%}{% if loop.index0 > 5 %}{% break %}{% endif %}"
  "[INST] {{ m['content'] | tojson }} [/INST]{%- endfor -%}"
)
ANSWERS = (
  "{% set now = strftime_now if strftime_now is defined else none %}{{ messages | length }}"
  "{% for m in messages %}{% generation %}{{ m['content'].strip() }}{% endgeneration %}{% endfor %}"
  "{{ tools is none }}{{ unk_token }}|{{ nothing }}"
)
TEXTS = ("der Hund", "  a \n\n dog {{ 7 * 7 }} {% raise %} ", 'é "犬" <b> & \\', "")


def write(directory, every, template, *, where="chat_template.jinja", **config):
  """A byte-level tokenizer with this template; `config` are further fields of its config."""
  every["byte-level"].save(directory)
  values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>"}
  values |= {"eos_token": {"content": "<|endoftext|>", "__type": "AddedToken"}, **config}
  if where == "chat_template.jinja":
    (directory / where).write_text(template)
  else:
    values["chat_template"] = template
  (directory / "tokenizer_config.json").write_text(json.dumps(values))
  return directory


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_text_is_the_users_turn_and_the_answer_is_opened(every, tmp_path, where):
  tokenizer = load(write(tmp_path, every, MARKS, where=where))
  assert tokenizer.chat_prompt(" a dog ") == "<|user|>a dog\n<|endoftext|><|assistant|>"
  ids = tokenizer.encode(tokenizer.chat_prompt("a dog"), parse_special=True)
  assert ids.count(tokenizer.eos_id) == 1
  assert tokenizer.eos_id not in tokenizer.encode(tokenizer.chat_prompt("a dog"))


def test_the_template_travels_with_the_tokenizer_and_changes_no_ids(every, tmp_path):
  source = write(tmp_path / "source", every, INSTRUCTED)
  ours = load(source)
  ours.save(tmp_path / "saved")
  pruned = PrunedTokenizer(ours, sorted(ours.alphabet))
  pruned.save(tmp_path / "pruned")
  for other in (load(tmp_path / "saved"), pruned, load(tmp_path / "pruned")):
    assert other.chat_prompt("a dog") == ours.chat_prompt("a dog") == (
      '<|endoftext|>[INST] "a dog" [/INST]'
    )  # fmt: skip
  (source / "chat_template.jinja").write_text(MARKS)
  assert load(source).sha256 == ours.sha256
  assert load(source).chat_prompt("a dog") != ours.chat_prompt("a dog")


def test_of_several_templates_the_default_is_taken_and_the_file_of_its_own_comes_first(
  every, tmp_path
):
  several = [{"name": "tools", "template": "no"}, {"name": "default", "template": MARKS}]
  source = write(tmp_path, every, several, where="tokenizer_config.json")
  assert load(source).chat_prompt("a") == "<|user|>a\n<|endoftext|><|assistant|>"
  (source / "chat_template.jinja").write_text("{{ messages[0].content }}!")
  assert load(source).chat_prompt("a") == "a!"


def test_sentence_pieces_know_their_own_special_tokens(every, tmp_path):
  every["fairseq pieces"].save(tmp_path)
  (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
  tokenizer = load(tmp_path)
  assert tokenizer.chat_prompt("a dog") == "<s>a dog"
  ids = tokenizer.encode(tokenizer.chat_prompt("a dog"), parse_special=True)
  assert ids == [tokenizer.bos_id, *tokenizer.encode("a dog")]


def test_without_a_template_it_is_refused_in_one_line(tokenizer):
  with pytest.raises(UserError, match="has no chat template") as refusal:
    tokenizer.chat_prompt("a dog")
  assert "\n" not in str(refusal.value)
  assert "data.chat" in str(refusal.value)


@pytest.mark.parametrize(
  ("template", "reason"),
  [
    ("{{ raise_exception('only\npairs') }}", "only pairs"),
    ("{% for m in messages %}", "TemplateSyntaxError"),
    ("{{ strftime_now('%d') }}", "strftime_now"),
    ("{{ messages[3].content }}", "UndefinedError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{% include 'other' %}", "no loader"),
  ],
)
def test_a_template_that_fails_or_reaches_out_is_refused_in_one_line(
  every, tmp_path, template, reason
):
  tokenizer = load(write(tmp_path, every, template))
  with pytest.raises(UserError, match=reason) as refusal:
    tokenizer.chat_prompt("a dog")
  assert "\n" not in str(refusal.value)
  assert "chat template fails on 'a dog'" in str(refusal.value)


BORDERS = "{{ bos_token }}[x] {{ messages[0].content | trim }} b{{ eos_token }}a"  # pieces join


def turn_of(every, kind, directory):
  """A tokenizer of that kind behind BORDERS, and a contract of chats."""
  every[kind].save(directory)
  (directory / "chat_template.jinja").write_text(BORDERS)
  tokenizer = load(directory)
  eos = tokenizer.special_ids.get("eos_id", 0)
  return tokenizer, Contract(bos_id=-1, pad_id=0, eos_id=eos, mask_id=0, chat=True)


SOME = ["byte-level", "unigram", "words", "fairseq pieces", "plain pieces"]


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("pruned", [False, True])
def test_the_ids_of_a_turn_are_the_templates_around_the_texts(every, tmp_path, texts, kind, pruned):
  """Without special tokens in the text those of the whole; with them, the text's stay text."""
  tokenizer, contract = turn_of(every, kind, tmp_path)
  tokenizer = PrunedTokenizer(tokenizer, sorted(tokenizer.alphabet)) if pruned else tokenizer
  whole = lambda text: tokenizer.encode(tokenizer.chat_prompt(text), parse_special=True)
  special = set(tokenizer.special_ids.values())
  count = lambda ids: sum(id_ in special for id_ in ids)
  for text in texts[:60]:
    assert features.prompt_ids(text, tokenizer, contract) == (whole(text) if text else [])
  for id_ in special:
    said = f"a dog {tokenizer.piece(id_)} runs"
    ids = features.prompt_ids(said, tokenizer, contract)
    assert count(ids) == count(whole("a dog")) < count(whole(said))
    literal = tokenizer.encode(said)
    assert any(ids[n : n + len(literal)] == literal for n in range(len(ids)))


@pytest.mark.parametrize("policy", ["keep_start", "keep_end", "keep_ends"])
@pytest.mark.parametrize("kind", SOME)
def test_a_turn_that_is_cut_keeps_the_templates_words(every, tmp_path, kind, policy):
  tokenizer, contract = turn_of(every, kind, tmp_path)
  text = "der Hund runs Fast a dog läuft über die grüne Wiese"
  shown = lambda ids: "".join(map(tokenizer.piece, ids)).replace(" ", "")
  words = chat.split(tokenizer.chat_prompt, text)
  head, tail = (shown(tokenizer.encode(words[n], parse_special=True)) for n in (0, 2))
  whole = features.prompt_ids(text, tokenizer, contract)
  sizes = []
  for size in range(3, len(whole) + 5):
    row = features.encode(Example(text, "a"), tokenizer, contract, max_length=size, too_long=policy)
    if row is None:
      continue
    sizes.append(size)
    ids = row.tokens[1 : row.canvas_start].tolist()
    assert len(row.tokens) == min(size, len(whole) + 1 + len(row.tokens) - row.canvas_start)
    assert shown(ids).startswith(head)
    assert shown(ids).endswith(tail)
    cuts = (whole[:n] + whole[len(whole) - len(ids) + n :] for n in range(len(ids) + 1))
    assert ids in cuts
  assert len(sizes) > 5


@pytest.mark.parametrize(
  "template",
  [
    "{{ messages[0].content }} {{ messages[0].content }}",
    "{{ messages | length }}",
    "{{ messages[0].content | length }} {{ messages[0].content }}",
  ],
)
def test_a_template_without_one_place_for_the_text_is_refused(every, tmp_path, template):
  tokenizer = load(write(tmp_path, every, template))
  with pytest.raises(UserError, match="does not write 'a dog' once"):
    chat.split(tokenizer.chat_prompt, "a dog")


def test_a_template_that_is_no_text_is_refused(every):
  inner = every["byte-level"]
  model, roles = inner.__reduce__()[1][:2]
  damaged = HuggingFaceTokenizer(model, roles, beside={"chat_template.jinja": b"\xff{{ a }}"})
  with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8 at byte 0"):
    damaged.chat_prompt("a dog")


@pytest.mark.parity
@pytest.mark.parametrize("template", [MARKS, INSTRUCTED, ANSWERS])
def test_prompts_and_ids_equal_those_of_transformers(every, tmp_path, template):
  transformers = pytest.importorskip("transformers")
  if template == ANSWERS:  # transformers tells a template the date, we do not
    template = template.replace("strftime_now is defined", "false")
  source = write(tmp_path, every, template)
  ours, theirs = load(source), transformers.AutoTokenizer.from_pretrained(str(source))
  for text in TEXTS:
    turn = [{"role": "user", "content": text}]
    want = theirs.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert ours.chat_prompt(text) == want
    ids = theirs.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert ours.encode(ours.chat_prompt(text), parse_special=True) == ids
