"""Texts that speak to the annotator: an order in a title is no property of the product.

A pair with such a text is not sent to the model but queued for people, with the words found.
"""

from __future__ import annotations

import re
import unicodedata

from embeddings.relevance.prompt import one_line

_RULES = (
    r"(?:instruct\w*|prompts?|rubrics?|guidelines?|(?:previous|prior|above|earlier|preceding) "
    r"(?:text|context|messages?|rules?|orders?)|(?:your|all|the|any|these|those) rules?|"
    r"everything (?:above|before)|anweisung\w*|instrucciones|instructions|istruzioni|instrucoes)"
)
_SCALE = (
    r"(?:[0-5]\b|zero|one|two|three|(?:(?:highly|very|perfectly|fully|most|not|ir|moderately) ?)?"
    r"relevant|same\b|yes\b|no\b|perfect match|exact match|maximum|highest|lowest|top score)"
)
_ORDER = re.compile(
    "|".join(
        (
            # Orders about orders.
            r"\b(?:ignor\w*|disregard\w*|forget\w*|overrid\w*|overrul\w*|bypass\w*|skip|olvida\w*|"
            r"oublie\w*|vergiss|dimentica\w*|do not follow|don['’]?t follow|stop following)\b"
            rf"(?:\W+\w+){{0,5}}?\W+{_RULES}\b",
            # Orders that claim another giver.
            r"\b(?:new|updated|revised|real|actual|secret|hidden|system|admin|developer) "
            r"(?:instructions?|prompts?)\b(?! (?:manual|booklet|sheet))",
            # What to answer.
            r"\b(?:answer|respond|reply|output|return|say|write)\b(?: only| just| always| "
            rf"with| as| it| this| the| value| number| label| score| rating)*\W{{1,3}}{_SCALE}",
            # How to rate "this product".
            r"\b(?:rate|label|score|grade|mark|classify|judge|rank|treat|consider|annotate)\b"
            r" (?:it|this|that|these|them|me|us|(?:this|the|these|every|all|each|any) "
            r"(?:items?|products?|pairs?|results?|titles?|listings?|answers?))"
            rf"(?: \w+){{0,3}}?(?: as| with| a| an| to be|\W)*\W{_SCALE}",
            # What the rating is.
            r"\b(?:label|score|rating|relevance|grade|verdict|answer|product type|attributes)"
            rf" ?(?:must be|should be|has to be|shall be|is always|is|:=|=|:) ?[\"'“]?{_SCALE}",
            # Whom they take the reader for.
            r"\b(?:you are|you['’]re|act as|pretend to be|behave as)(?: \w+){0,4} "
            r"(?:assistant|ai|model|chatbot|annotator|judge|rater|evaluator|llm|gpt|bot)\b",
            r"\b(?:dear|hey|hello|note to|attention|message to)(?: the)? "
            r"(?:ai|assistant|model|chatbot|annotator|rater|evaluator|llm|gpt|bot)\b",
            r"\bas an? (?:ai|llm|language model|assistant)\b|\bjailbreak\b|\bprompt injection\b",
            # Turns of a chat, and the marks of its formats.
            r"(?:^|[.!?\]>|] ?)(?:system|assistant|user|developer)(?: message| prompt)? ?:",
            r"<\|?(?:im_start|im_end|system|assistant|user|endoftext|eot_id)|\[/?inst\]|<<sys>>|"
            r"###? ?(?:system|instruction|response|assistant|user)\b",
            # The marks and keys of our own prompt.
            r"</?(?:query|product|data|pair)\b[^>]{0,99}>|\"?\bproduct_type\b|\bcannot tell\b",
        )
    )
)


def instruction_in(text: str) -> str | None:
    """Return the first words of a text that speak to its reader as to a machine, or None.

    It looks for orders about instructions, answers and ratings, for roles and marks of chat
    formats, and for keys of the answer. It is a net with holes: what slips through can sway
    facets at most. A text that is caught wrongly costs one human judgement.

    Args:
        text: As it was given, uncut.
    """
    line = one_line(text)
    plain = "".join(c for c in unicodedata.normalize("NFKD", line) if not unicodedata.combining(c))
    found = _ORDER.search(plain.casefold())
    return found[0][:80] if found else None
