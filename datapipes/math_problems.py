"""Worked elementary mathematics in plain English, generated: the tiny recipe's stand-in for web mathematics.

A document is a pure function of (split, number) on every platform and Python version (foundation/draws.py). A problem
belongs to the held-out split or to training by a hash of what it asks, so that no problem (kind and operands) of one
split occurs in the other, whatever words it is put in.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from datatrove.data import Document

from foundation.draws import Draws, Split

VERSION = 1  # raise it with every change of the generated text: it is part of the pipeline's hash
HELDOUT_ONE_IN = 16


@dataclass(frozen=True)
class Problem:
    """`asks` identifies the problem without its wording: the kind and the operands."""

    asks: tuple[str | int, ...]
    question: str
    solution: str
    answer: str


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Lena", "Marco", "Nadia")
THINGS = ("apples", "books", "pencils", "stamps", "marbles", "tickets", "stickers", "cards", "flowers", "shells")
GOODS = ("notebook", "sandwich", "ticket", "lamp", "scarf", "puzzle", "mug", "plant", "ball", "calendar")
PLACES = ("the lake", "the station", "the next town", "her aunt's farm", "the museum", "the coast")


def _operands(draws: Draws) -> tuple[int, int]:
    top = draws.pick((20, 100, 100, 1_000, 10_000))
    return draws.between(2, top), draws.between(2, top)


def addition(draws: Draws) -> Problem:
    a, b = _operands(draws)
    question = draws.pick((f"What is {a} + {b}?", f"Add {a} and {b}.", f"Find the sum of {a} and {b}."))
    tens, ones = b // 10 * 10, b % 10
    if tens and ones:
        solution = f"Split {b} into {tens} and {ones}. {a} + {tens} = {a + tens}, and {a + tens} + {ones} = {a + b}."
    else:
        solution = f"{a} + {b} = {a + b}."
    return Problem(("add", min(a, b), max(a, b)), question, solution, str(a + b))


def subtraction(draws: Draws) -> Problem:
    b, a = sorted(_operands(draws))
    question = draws.pick((f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"How much more is {a} than {b}?"))
    solution = f"{a} - {b} = {a - b}. Check: {a - b} + {b} = {a}."
    return Problem(("subtract", a, b), question, solution, str(a - b))


def multiplication(draws: Draws) -> Problem:
    a, b = draws.between(3, draws.pick((12, 99, 999))), draws.between(3, draws.pick((12, 99)))
    question = draws.pick((f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"Find the product of {a} and {b}."))
    tens, ones = b // 10 * 10, b % 10
    if tens and ones:
        solution = f"{a} * {tens} = {a * tens} and {a} * {ones} = {a * ones}. "
        solution += f"Together {a * tens} + {a * ones} = {a * b}."
    else:
        solution = f"{a} * {b} = {a * b}."
    return Problem(("multiply", min(a, b), max(a, b)), question, solution, str(a * b))


def division(draws: Draws) -> Problem:
    divisor, quotient = draws.between(2, 25), draws.between(2, 60)
    rest = draws.pick((0, draws.below(divisor)))
    a = divisor * quotient + rest
    question = draws.pick((f"What is {a} divided by {divisor}?", f"Divide {a} by {divisor} and give the remainder."))
    solution = f"{divisor} * {quotient} = {divisor * quotient}, and {a} - {divisor * quotient} = {rest}."
    answer = f"{quotient} remainder {rest}" if rest else str(quotient)
    return Problem(("divide", a, divisor), question, solution, answer)


def order_of_operations(draws: Draws) -> Problem:
    a, b, c = draws.between(2, 50), draws.between(2, 12), draws.between(2, 12)
    if draws.below(2):
        value, shown = a + b * c, f"{a} + {b} * {c}"
        steps = f"Multiplication comes first: {b} * {c} = {b * c}. Then {a} + {b * c} = {value}."
    else:
        value, shown = (a + b) * c, f"({a} + {b}) * {c}"
        steps = f"The bracket comes first: {a} + {b} = {a + b}. Then {a + b} * {c} = {value}."
    return Problem(("order", shown), f"{draws.pick(('Compute', 'Work out', 'Evaluate'))} {shown}.", steps, str(value))


def linear_equation(draws: Draws) -> Problem:
    a, x, b = draws.between(2, 15), draws.between(-20, 40), draws.between(1, 60)
    sign = draws.pick(("+", "-"))
    c = a * x + b if sign == "+" else a * x - b
    undone = c - b if sign == "+" else c + b
    verb = f"Subtract {b} from" if sign == "+" else f"Add {b} to"
    question = f"{draws.pick(('Solve for x:', 'Find x if', 'Solve the equation'))} {a}x {sign} {b} = {c}."
    solution = f"{verb} both sides: {a}x = {undone}. Divide both sides by {a}: x = {undone} / {a} = {x}."
    return Problem(("linear", a, sign, b, c), question, solution, f"x = {x}")


def two_sided_equation(draws: Draws) -> Problem:
    a, x, d = draws.between(4, 12), draws.between(1, 25), draws.between(1, 40)
    c = draws.between(2, a - 2)
    e = (a - c) * x + d
    question = f"Solve {a}x + {d} = {c}x + {e}."
    solution = (
        f"Subtract {c}x from both sides: {a - c}x + {d} = {e}. Subtract {d}: {a - c}x = {e - d}. "
        f"Divide by {a - c}: x = {x}."
    )
    return Problem(("two-sided", a, d, c, e), question, solution, f"x = {x}")


def fractions(draws: Draws) -> Problem:
    b, d = draws.between(2, 12), draws.between(2, 12)
    a, c = draws.between(1, b - 1), draws.between(1, d - 1)
    common = b * d // gcd(b, d)
    left, right = a * common // b, c * common // d
    top, factor = left + right, gcd(left + right, common)
    answer = f"{top // factor}/{common // factor}" if common != factor else str(top // factor)
    solution = f"The common denominator is {common}: {a}/{b} = {left}/{common} and {c}/{d} = {right}/{common}. "
    solution += f"The sum is {top}/{common}" + (f" = {answer}." if factor > 1 else ".")
    return Problem(("fractions", a, b, c, d), f"What is {a}/{b} + {c}/{d}?", solution, answer)


def percentage(draws: Draws) -> Problem:
    percent, whole = draws.between(1, 19) * 5, draws.between(2, 60) * 20
    part, good = percent * whole // 100, draws.pick(GOODS)
    if draws.below(2):
        question = f"What is {percent}% of {whole}?"
        return Problem(
            ("percent", percent, whole),
            question,
            f"1% of {whole} is {whole / 100:g}, and {percent} times that is {part}.",
            str(part),
        )
    question = f"A {good} costs {whole} euros and is now {percent}% cheaper. What is the new price?"
    solution = f"{percent}% of {whole} is {part}. The new price is {whole} - {part} = {whole - part} euros."
    return Problem(("discount", percent, whole), question, solution, f"{whole - part} euros")


def shopping(draws: Draws) -> Problem:
    count, price, name, good = draws.between(2, 12), draws.between(2, 30), draws.pick(NAMES), draws.pick(GOODS)
    paid = (count * price // 50 + 1) * 50
    question = (
        f"{name} buys {count} {good}s for {price} euros each and pays with {paid} euros. How much change is there?"
    )
    if good.endswith("ch"):
        question = question.replace(f"{good}s", f"{good}es")
    solution = f"The goods cost {count} * {price} = {count * price} euros. The change is {paid} - {count * price} = "
    change = paid - count * price
    return Problem(("shopping", count, price), question, f"{solution}{change} euros.", f"{change} euros")


def gathering(draws: Draws) -> Problem:
    first, second, things = draws.pick(NAMES), draws.pick(NAMES), draws.pick(THINGS)
    a, more, gone = draws.between(5, 90), draws.between(2, 60), draws.between(1, 5)
    if first == second:
        second = "a friend"
    left = a + more - gone
    question = draws.pick(
        (
            f"{first} has {a} {things}, finds {more} more and gives {gone} to {second}. How many are left?",
            f"There are {a} {things} in a box. {first} adds {more}, then {second} takes {gone}. How many remain?",
        )
    )
    solution = f"After adding there are {a} + {more} = {a + more} {things}. Then {a + more} - {gone} = {left}."
    return Problem(("gathering", a, more, gone), question, solution, f"{left} {things}")


def sharing(draws: Draws) -> Problem:
    children, each, things = draws.between(2, 15), draws.between(2, 40), draws.pick(THINGS)
    total, name = children * each, draws.pick(NAMES)
    question = f"{name} shares {total} {things} equally among {children} children. How many does each child get?"
    solution = f"Divide: {total} / {children} = {each}."
    return Problem(("sharing", total, children), question, solution, f"{each} {things}")


def journey(draws: Draws) -> Problem:
    speed, hours, name, place = draws.between(2, 24) * 5, draws.between(2, 9), draws.pick(NAMES), draws.pick(PLACES)
    distance = speed * hours
    if draws.below(2):
        question = f"{name} travels to {place} at {speed} km per hour for {hours} hours. How far is it?"
        return Problem(
            ("distance", speed, hours),
            question,
            f"Distance is speed times time: {speed} * {hours} = {distance}.",
            f"{distance} km",
        )
    question = f"It is {distance} km to {place}. {name} travels at {speed} km per hour. How long does it take?"
    solution = f"Time is distance divided by speed: {distance} / {speed} = {hours}."
    return Problem(("time", distance, speed), question, solution, f"{hours} hours")


def rectangle(draws: Draws) -> Problem:
    width, length = draws.between(2, 60), draws.between(2, 60)
    if draws.below(2):
        question = f"A garden is {length} m long and {width} m wide. What is its area?"
        solution = f"Area is length times width: {length} * {width} = {length * width}."
        answer = f"{length * width} m^2"
    else:
        around = 2 * (length + width)
        question = f"A field is {length} m long and {width} m wide. How long is the fence around it?"
        solution = f"The sides add up to {length} + {width} = {length + width} m; twice that is {around} m."
        answer = f"{around} m"
    return Problem(("rectangle", answer[-1], min(width, length), max(width, length)), question, solution, answer)


def sequence(draws: Draws) -> Problem:
    start, step = draws.between(1, 60), draws.between(2, 25)
    shown = ", ".join(str(start + step * k) for k in range(4))
    question = f"{draws.pick(('What comes next:', 'Continue the sequence'))} {shown}, ..."
    solution = f"Each number is {step} more than the one before: {start + 3 * step} + {step} = {start + 4 * step}."
    return Problem(("sequence", start, step), question, solution, str(start + 4 * step))


def comparison(draws: Draws) -> Problem:
    older, younger = draws.pick(NAMES), draws.pick(NAMES)
    if older == younger:
        younger = "the neighbour"
    age, years, factor = draws.between(4, 20), draws.between(2, 15), draws.between(2, 4)
    now = age * factor
    question = (
        f"{younger[0].upper()}{younger[1:]} is {age} years old. {older} is {factor} times as old. "
        f"How old will {older} be in {years} years?"
    )
    solution = f"{older} is {factor} * {age} = {now} years old now. In {years} years: {now} + {years} = {now + years}."
    return Problem(("age", age, factor, years), question, solution, f"{now + years} years")


KINDS: tuple[Callable[[Draws], Problem], ...] = (
    *(addition, subtraction, multiplication, division, order_of_operations, linear_equation, two_sided_equation),
    *(fractions, percentage, shopping, gathering, sharing, journey, rectangle, sequence, comparison),
)


def is_held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the held-out split, by what it asks alone."""
    digest = hashlib.sha256(repr(problem.asks).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0


def draw_problem(draws: Draws, split: Split) -> Problem:
    """A problem of that split."""
    kind = draws.pick(KINDS)
    while is_held_out(problem := kind(draws)) != (split == "heldout"):
        pass
    return problem


LAYOUTS = (
    "Question: {question}\nAnswer: {solution} The answer is {answer}.",
    "Problem. {question}\nSolution. {solution}\nAnswer: {answer}",
    "{question}\n{solution} So the answer is {answer}.",
    "Q: {question}\nA: {solution} Answer: {answer}.",
)


def math_document(split: Split, number: int) -> Document:
    """Document `number` of a split: three to eight problems in one layout, about 700 characters."""
    draws = Draws(f"{VERSION}/{split}/{number}")
    layout = draws.pick(LAYOUTS)
    problems = [draw_problem(draws, split) for _ in range(draws.between(3, 8))]
    text = "\n\n".join(layout.format(**vars(problem)) for problem in problems)
    return Document(text=text, id=f"math/{split}/{number}")
