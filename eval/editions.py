"""The small local edition of each benchmark: our own items in the real set's schema.

They exercise every task end to end and let a miniature show that it learned something (sums, opposites, everyday
facts); their scores are not comparable with those of the real sets.
"""

import json
import random
from collections.abc import Callable

from eval.benchmarks import LANGUAGES, Benchmark
from eval.code_items import Row, bfcl, humaneval, livecodebench, mbpp
from eval.errors import EvalError
from eval.local_data import Rows

_ITEMS, _FEWSHOT_ITEMS = 24, 10

_FACTS = [
    ("What do bees make", "honey", ["milk", "wool", "bread"]),
    ("Which animal says moo", "a cow", ["a cat", "a duck", "a horse"]),
    ("What falls from clouds", "rain", ["sand", "salt", "leaves"]),
    ("What does ice turn into when it gets warm", "water", ["stone", "wood", "paper"]),
    ("What do people use to write on paper", "a pencil", ["a spoon", "a shoe", "a pillow"]),
    ("Where do fish live", "in water", ["in trees", "in books", "in clouds"]),
    ("Which season is the coldest", "winter", ["summer", "spring", "autumn"]),
    ("What shines in the sky by day", "the sun", ["a lamp", "a candle", "a mirror"]),
    ("What do plants need to grow", "light and water", ["paint and glue", "coins and keys", "smoke and noise"]),
    ("What is the opposite of hot", "cold", ["tall", "loud", "sweet"]),
    ("What is the opposite of up", "down", ["left", "near", "soft"]),
    ("How many legs does a spider have", "eight", ["two", "four", "six"]),
    ("What do cows eat", "grass", ["stones", "nails", "glass"]),
    ("Which of these can fly", "a bird", ["a dog", "a snail", "a table"]),
    ("What do you open with a key", "a door", ["a river", "a song", "a cloud"]),
    ("What is used to cut paper", "scissors", ["a blanket", "a sponge", "a candle"]),
    ("What do you wear on your feet", "shoes", ["gloves", "hats", "scarves"]),
    ("What comes after Monday", "Tuesday", ["Friday", "Sunday", "Saturday"]),
    ("Which of these is a fruit", "an apple", ["a brick", "a chair", "a fork"]),
    ("What do sheep give us", "wool", ["glass", "iron", "paper"]),
]

# language -> words for 0..12, and how a sum is asked, in a sentence and as a statement to be continued
_NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici",
    "pt": "zero um dois três quatro cinco seis sete oito nove dez onze doze",
}
_SUM = {
    "en": ("What is {a} plus {b}?", "{a} plus {b} equals"),
    "fr": ("Combien font {a} plus {b} ?", "{a} plus {b} font"),
    "es": ("¿Cuánto es {a} más {b}?", "{a} más {b} es igual a"),
    "de": ("Wie viel ist {a} plus {b}?", "{a} plus {b} ist gleich"),
    "it": ("Quanto fa {a} più {b}?", "{a} più {b} fa"),
    "pt": ("Quanto é {a} mais {b}?", "{a} mais {b} é igual a"),
}


def small_rows(benchmark: Benchmark) -> Rows:
    """All splits of the benchmark's dataset; the same rows in every run, and no item in two splits.

    Raises:
        EvalError: when nobody has written a function that makes items in this set's schema.
    """
    assert benchmark.dataset is not None
    rng = random.Random(benchmark.dataset.folder)
    make = _MAKERS.get(benchmark.builder)
    if make is None:
        raise EvalError(
            f"There are no items of our own for the benchmark {benchmark.name!r}: _MAKERS in eval/editions.py has no "
            f"function for {benchmark.builder!r}. Write one, or take the real set: smollm3 eval-data --edition full."
        )
    rows: list[Row] = []
    seen: set[str] = set()
    wanted = _ITEMS + (_FEWSHOT_ITEMS if len(benchmark.dataset.splits) > 1 else 0)
    for _ in range(100 * wanted):
        row = make(rng, benchmark)
        key = json.dumps(row, sort_keys=True)
        if key not in seen:
            seen.add(key)
            rows.append(row)
        if len(rows) == wanted:
            break
    fewshot = dict.fromkeys(benchmark.dataset.splits[1:], rows[_ITEMS:])
    return {benchmark.dataset.split: rows[:_ITEMS], **fewshot}


def _choices(rng: random.Random, count: int) -> tuple[str, list[str], int]:
    """(question without question mark, `count` options, index of the right one): a fact or a sum."""
    if rng.random() < 0.4:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        question, answer = f"What is {a} plus {b}", str(a + b)
        wrong = [str(value) for value in range(2, 30) if value != a + b]
    else:
        question, answer, others = rng.choice(_FACTS)
        wrong = list(others)
        # Sets with more than four options: borrow the answers of other facts.
        wrong += [fact[1] for fact in rng.sample(_FACTS, len(_FACTS)) if fact[1] != answer and fact[1] not in wrong]
        wrong = wrong[: max(count - 1, 3)]
    options = rng.sample(wrong, count - 1)
    index = rng.randrange(count)
    options.insert(index, answer)
    return question, options, index


def _letters(count: int) -> list[str]:
    return list("ABCDEFGHIJ"[:count])


def _labelled(question_key: str, count: int) -> Callable[[random.Random, Benchmark], Row]:
    def make(rng: random.Random, benchmark: Benchmark) -> Row:
        question, options, index = _choices(rng, count)
        choices = {"label": _letters(count), "text": options}
        return {question_key: f"{question}?", "choices": choices, "answerKey": _letters(count)[index]}

    return make


def _hellaswag(rng: random.Random, benchmark: Benchmark) -> Row:
    language = benchmark.arguments.get("language", "en")
    context, options, index = _sum_in_words(rng, language)[1:]
    return {"activity_label": "Counting", "ctx_a": context, "ctx_b": "", "endings": options, "label": str(index)}


def _sum_in_words(rng: random.Random, language: str) -> tuple[str, str, list[str], int]:
    """(question, statement to continue, four number words, index of the right one)."""
    words = _NUMBERS[language].split()
    a, b = rng.randint(1, 6), rng.randint(1, 6)
    options = rng.sample([word for word in words[1:] if word != words[a + b]], 3)
    index = rng.randrange(4)
    options.insert(index, words[a + b])
    question, statement = (text.format(a=words[a], b=words[b]) for text in _SUM[language])
    return question, statement, options, index


def _winogrande(rng: random.Random, benchmark: Benchmark) -> Row:
    big, small = rng.sample(["box", "bag", "cup", "car", "house", "shoe", "coin", "boat"], 2)
    answer = rng.randrange(2)
    reason = ("small", "large")[answer]
    sentence = f"The {big} did not fit into the {small} because the _ was too {reason}."
    first, second = small, big
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(answer + 1)}


def _boolq(rng: random.Random, benchmark: Benchmark) -> Row:
    count, other = rng.sample(range(2, 40), 2)
    thing = rng.choice(["apples", "books", "chairs", "coins", "stones"])
    truth = rng.random() < 0.5
    asked = count if truth else other
    return {
        "passage": f"Anna counted the {thing} in the room. There were {count} {thing}.",
        "question": f"are there {asked} {thing} in the room",
        "answer": truth,
    }


def _mmlu(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 4)
    return {"question": f"{question}?", "choices": options, "answer": index, "subject": "everyday"}


def _mmlu_pro(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 10)
    return {"question": f"{question}?", "options": options, "answer_index": index, "category": "everyday"}


def _piqa(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 2)
    return {"goal": f"{question}?", "sol1": options[0], "sol2": options[1], "label": index}


def _story(rng: random.Random) -> tuple[str, str, int]:
    """(problem, solution, answer): one or two steps with small numbers."""
    name = rng.choice(["Anna", "Ben", "Clara", "David", "Emma", "Felix"])
    thing = rng.choice(["apples", "books", "coins", "pens", "shells"])
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 5)
    if rng.random() < 0.5:
        problem = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"
        return problem, f"{name} has {a} + {b} = {a + b} {thing}.", a + b
    problem = f"{name} has {a} bags with {c} {thing} in each, and {b} more {thing}. How many {thing} is that in all?"
    return (
        problem,
        f"The bags hold {a} * {c} = {a * c} {thing}. In all there are {a * c} + {b} = {a * c + b}.",
        a * c + b,
    )


def _gsm8k(rng: random.Random, benchmark: Benchmark) -> Row:
    problem, solution, answer = _story(rng)
    return {"question": problem, "answer": f"{solution}\n#### {answer}"}


def _math(rng: random.Random, benchmark: Benchmark) -> Row:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    problem = f"Compute $\\frac{{{a * b * c}}}{{{b}}} - {c}$."
    solution = f"We have $\\frac{{{a * b * c}}}{{{b}}} = {a * c}$, and $ {a * c} - {c} = \\boxed{{{a * c - c}}}$."
    return {"problem": problem, "solution": solution, "level": "Level 1", "type": "Prealgebra"}


def _aime25(rng: random.Random, benchmark: Benchmark) -> Row:
    a, b, m = rng.randint(11, 99), rng.randint(11, 99), rng.randint(101, 997)
    return {"problem": f"Find the remainder when ${a} \\cdot {b}$ is divided by ${m}$.", "answer": str(a * b % m)}


def _gsm_plus(rng: random.Random, benchmark: Benchmark) -> Row:
    problem, _, answer = _story(rng)
    return {"question": problem, "answer": str(answer), "perturbation_type": "numerical substitution"}


def _gpqa(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 4)
    wrong = [option for place, option in enumerate(options) if place != index]
    row = {f"Incorrect Answer {number}": option for number, option in enumerate(wrong, 1)}
    return {"Question": f"{question}?", "Correct Answer": options[index], **row}


def _ifeval(rng: random.Random, benchmark: Benchmark) -> Row:
    topic = rng.choice(["the sea", "a garden", "winter", "a long walk", "bread", "music", "a train ride", "rain"])
    kind = rng.choice(["commas", "lowercase", "words", "ending"])
    if kind == "commas":
        return _instruction(f"Write about {topic}. Do not use any commas.", "punctuation:no_comma", {})
    if kind == "lowercase":
        text = f"Write about {topic} in English, in lowercase letters only."
        return _instruction(text, "change_case:english_lowercase", {})
    if kind == "words":
        count = rng.randint(5, 20)
        text = f"Write about {topic} with at least {count} words."
        return _instruction(text, "length_constraints:number_words", {"relation": "at least", "num_words": count})
    phrase = "That is all."
    return _instruction(
        f"Write about {topic}. End with the exact phrase: {phrase}", "startend:end_checker", {"end_phrase": phrase}
    )


def _instruction(prompt: str, instruction_id: str, arguments: Row) -> Row:
    return {"prompt": prompt, "instruction_id_list": [instruction_id], "kwargs": [arguments]}


def _mixeval_mc(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 4)
    return {
        "prompt": f"{question}?",
        "options": options,
        "target": [str(index)],
        "context": None,
        "problem_type": "single-choice",
        "benchmark_name": "ours",
    }


def _mixeval_freeform(rng: random.Random, benchmark: Benchmark) -> Row:
    question, options, index = _choices(rng, 4)
    row = {"prompt": f"{question}?", "target": [options[index]], "context": None}
    return {**row, "problem_type": "free-form", "benchmark_name": "ours"}


def _helmet_icl(rng: random.Random, benchmark: Benchmark) -> Row:
    """What a sentence is about; classes are numbers, as the hub's sets have them."""
    classes = {0: ("apples", "pears", "plums"), 1: ("rain", "snow", "fog"), 2: ("a train", "a bus", "a boat")}
    label = rng.randrange(len(classes))
    verb = rng.choice(["likes", "sees", "draws", "remembers", "waits for"])
    name = rng.choice(["Anna", "Ben", "Clara", "David", "Emma", "Felix"])
    return {"text": f"{name} {verb} {rng.choice(classes[label])}.", **dict.fromkeys(_ICL_LABELS, label)}


_ICL_LABELS = ("label", "intent", "coarse_label", "fine_label")


def _helmet_rag(rng: random.Random, benchmark: Benchmark) -> Row:
    cities = ["Paris", "Rome", "Lisbon", "Madrid", "Berlin", "Vienna", "Oslo", "Dublin"]
    people = rng.sample(["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"], 2)
    homes = dict(zip(people, rng.sample(cities, 2), strict=True))
    ctxs = [{"title": person, "text": f"{person} lives in {city} with a cat."} for person, city in homes.items()]
    asked = rng.choice(people)
    return {"question": f"In which city does {asked} live?", "answers": [homes[asked]], "ctxs": ctxs}


def _belebele(rng: random.Random, benchmark: Benchmark) -> Row:
    question, statement, options, index = _sum_in_words(rng, benchmark.arguments["language"])
    row = {f"mc_answer{number}": option for number, option in enumerate(options, 1)}
    passage = f"{statement[0].upper()}{statement[1:]} {options[index]}."
    return {"flores_passage": passage, "question": question, "correct_answer_num": str(index + 1), **row}


def _global_mmlu(rng: random.Random, benchmark: Benchmark) -> Row:
    question, _, options, index = _sum_in_words(rng, benchmark.arguments["language"])
    row = {f"option_{letter}": option for letter, option in zip("abcd", options, strict=True)}
    return {"question": question, "answer": "ABCD"[index], "cultural_sensitivity_label": "CA", "subject": "ours", **row}


def _flores(rng: random.Random, benchmark: Benchmark) -> Row:
    language = benchmark.arguments["language"]
    a, b = rng.randint(1, 6), rng.randint(1, 6)
    sentences = {}
    for name, code in (("en", "eng"), (language, LANGUAGES[language])):
        words = _NUMBERS[name].split()
        statement = _SUM[name][1].format(a=words[a], b=words[b])
        sentences[f"sentence_{code}_Latn"] = f"{statement[0].upper()}{statement[1:]} {words[a + b]}."
    return sentences


_MAKERS: dict[str, Callable[[random.Random, Benchmark], Row]] = {
    "hellaswag": _hellaswag,
    "mlmm_hellaswag": _hellaswag,
    "arc": _labelled("question", 4),
    "commonsense_qa": _labelled("question", 5),
    "openbookqa": _labelled("question_stem", 4),
    "winogrande": _winogrande,
    "boolq": _boolq,
    "mmlu": _mmlu,
    "mmlu_pro": _mmlu_pro,
    "piqa": _piqa,
    "gsm8k": _gsm8k,
    "math": _math,
    "aime25": _aime25,
    "gsm_plus": _gsm_plus,
    "gpqa": _gpqa,
    "ifeval": _ifeval,
    "mixeval_mc": _mixeval_mc,
    "mixeval_freeform": _mixeval_freeform,
    "helmet_label": _helmet_icl,
    "helmet_answer": _helmet_rag,
    "belebele": _belebele,
    "global_mmlu": _global_mmlu,
    "global_mmlu_instruct": _global_mmlu,
    "flores": _flores,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "livecodebench": livecodebench,
    "bfcl": bfcl,
}
