"""The questions, their judges, and what a score says: garbage never passes, and a small model is not blamed."""

from __future__ import annotations

import pytest

from bringup import questions
from bringup.edge.http import Answer
from bringup.probes import canary
from bringup.probes.canary import Score
from bringup.questions import Question
from bringup.records import Status
from tests.unit.fakes import FakeHttp, answer, canaries, chat, completion, make_server

ASKED, ROWS = questions.load()
FIVE = Question("What is 2 + 3?", number=5)
PARIS = Question("Capital?", words=("Paris",))
STATUS = Question("JSON", json={"status": "ok"})


@pytest.mark.parametrize(
    ("question", "text", "right"),
    [
        (FIVE, "5", True), (FIVE, " 2 + 3 = 5.", True), (FIVE, "The answer is 5", True), (FIVE, "", False),
        (FIVE, "15", False), (FIVE, "6", False), (FIVE, "5 or 6", False), (FIVE, "1 2 3 4 5 6", False),
        (FIVE, "five", False), (FIVE, "2 + 3", False), (Question("What is 10 - 5?", number=5), "10 - 5 = 5", True),
        (PARIS, "paris", True), (PARIS, "It is Paris.", True), (PARIS, "Parish", False), (PARIS, "Rome", False),
        (STATUS, ' {"status": "ok"}\n', True), (STATUS, '```json\n{"status":"ok"}\n```', True),
        (STATUS, 'Sure! {"status": "ok"}', False), (STATUS, '{"status": "no"}', False), (STATUS, "{}", False),
    ],
)  # fmt: skip
def test_what_is_right(question: Question, text: str, right: bool) -> None:
    assert question.right(text) is right


def test_no_question_can_be_answered_by_what_answers_another_or_by_repeating_it() -> None:
    said = [q.words[0] if q.words else str(q.number) for q in ASKED if q.json is None]
    assert len(ASKED) >= 20
    assert len({q.ask for q in ASKED}) == len(ASKED)
    for text in said:
        assert sum(q.right(text) for q in ASKED) == 1, text
    assert min(len(word) for q in ASKED for word in q.words) >= 3, "a letter stands in any garbage"
    for question in ASKED:
        assert question.ask.startswith("Repeat") or not question.right(question.ask), question.ask


@pytest.mark.parametrize(
    "text", [" ".join(q.words[0] for q in ASKED if q.words), "!!!!", "the the the", "I am a model"]
)
def test_one_text_for_everything_fails_whatever_is_in_it(text: str) -> None:
    score = Score.of(ASKED, [text] * len(ASKED))
    for parameters in (None, 10**7, 5 * 10**8, 10**10):
        row, _ = questions.threshold(ROWS, parameters)
        assert canary.judge("x", score, parameters, row).status is Status.FAIL


BILLION = 10**9
SCORES = {
    # right of 20, answers that are no text, parameters
    "a large one knows nearly all": (18, 0, 2 * BILLION, Status.PASS),
    "a large one at its threshold": (15, 0, BILLION, Status.PASS),
    "a large one below": (14, 0, BILLION, Status.UNKNOWN),
    "a large one far below": (7, 0, BILLION, Status.FAIL),
    "a large one that knows nothing": (0, 0, BILLION, Status.FAIL),
    "a half one": (10, 0, BILLION // 2, Status.PASS),
    "a half one far below": (3, 0, BILLION // 2, Status.FAIL),
    "a small one": (5, 0, BILLION // 10, Status.PASS),
    "a small one that knows nothing": (0, 0, BILLION // 10, Status.UNKNOWN),
    "a small one that says garbage": (0, 10, BILLION // 10, Status.FAIL),
    "an unknown one knows nearly all": (15, 0, None, Status.PASS),
    "an unknown one below": (14, 0, None, Status.UNKNOWN),
    "an unknown one that knows nothing": (0, 0, None, Status.UNKNOWN),
    "an unknown one that says garbage": (4, 10, None, Status.FAIL),
}


@pytest.mark.parametrize("name", SCORES)
def test_what_a_score_says(name: str) -> None:
    right, degenerate, parameters, status = SCORES[name]
    row, rule = questions.threshold(ROWS, parameters)
    found = canary.judge("x", Score(20, right, degenerate, 15, "one"), parameters, row)
    assert found.status is status, found
    assert ("unknown size" in rule) is (parameters is None)


def clever(payload: dict[str, object], _timeout: float) -> Answer:
    """Answers every question rightly, as a chat."""
    messages = payload["messages"]
    assert isinstance(messages, list)
    asked = next(q for q in ASKED if q.ask == messages[0]["content"])
    if asked.json is not None:
        import json

        return answer(chat(json.dumps(asked.json), made=3))
    return answer(chat(asked.words[0] if asked.words else f"It is {asked.number}.", made=3))


def test_a_clever_model_passes_by_chats_and_is_asked_few_or_all() -> None:
    http = FakeHttp({"/v1/chat/completions": clever})
    assert canary.canary(make_server(http)).data["asked"] == len(http.asked) == canary.FEW
    found = canary.canaries(make_server(http, parameters=BILLION))
    assert (found.status, found.data["right"]) == (Status.PASS, len(ASKED))


def test_without_a_chat_template_the_form_asks() -> None:
    refused = answer({"error": "default chat template is no longer allowed"}, status=400)

    def complete(payload: dict[str, object], _timeout: float) -> Answer:
        asked = next(q for q in ASKED if f"Question: {q.ask}\n" in str(payload["prompt"]))
        return answer(completion(f" {asked.words[0] if asked.words else asked.number}", made=2))

    http = FakeHttp({"/v1/chat/completions": refused, "/v1/completions": complete})
    found = canary.canary(make_server(http))
    assert (found.status, found.data["right"]) == (Status.PASS, canary.FEW - 1)  # of JSON it knows nothing


@pytest.mark.parametrize(
    ("reply", "words"),
    [(answer(chat(made=49)), "impossible"), (answer({}, status=500), "HTTP 500"), (answer(chat(model="n")), "'n'")],
)
def test_an_answer_that_is_none_fails(reply: Answer, words: str) -> None:
    found = canary.canary(make_server(FakeHttp({"/v1/chat/completions": reply})))
    assert (found.status, words in found.found) == (Status.FAIL, True), found


def test_known_answers_beyond_the_first_are_the_canary() -> None:
    known = canaries(*((f"q{i}", f" answer number {i}") for i in range(9)))

    def reply(payload: dict[str, object], _timeout: float) -> Answer:
        number = str(payload["prompt"])[1:]
        return answer(completion(f" answer number {'x' if number == '8' else number}", made=4))

    http = FakeHttp({"/v1/completions": reply})
    assert "'q8': answered 'answer number x'" in canary.canary(make_server(http, canaries=known)).found
    assert sorted(p["prompt"] for _, p in http.asked) == ["q5", "q6", "q7", "q8"]
    assert canary.canaries(make_server(http, canaries=known[:8])).status is Status.PASS
