"""The words of the grocery world: departments, product types, attributes, brands and needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Department:
    """One department: what its products may be like."""

    name: str
    packs: tuple[str, ...]
    """Pack forms; each product has one."""
    flavours: tuple[str, ...]
    """Flavours; a product has one or none."""
    preparations: tuple[str, ...]
    """Preparations; a product has one or none."""
    diets: tuple[str, ...]
    """Diet claims; a product has up to two."""
    types: tuple[tuple[str, tuple[str, ...], float], ...]
    """Five types: name, other words that shoppers use for it, usual price. The first three
    substitute each other, and so do the last two."""


PACKS = ("can", "bottle", "jar", "box", "bag", "tub")
FLAVOURS = ("strawberry", "lemon", "chocolate", "vanilla", "garlic", "chilli", "honey")
PREPARATIONS = ("smoked", "sliced", "roasted", "frozen", "ground")
DIETS = ("organic", "gluten free", "vegan", "sugar free", "low salt", "lactose free")
ATTRIBUTES = PACKS + FLAVOURS + PREPARATIONS + DIETS

ATTRIBUTE_WORDS: dict[str, tuple[str, ...]] = {
    "can": ("canned", "tinned"),
    "bottle": ("bottled", "in a bottle"),
    "jar": ("jarred", "in a jar"),
    "box": ("boxed", "carton"),
    "bag": ("bagged", "in a bag"),
    "tub": ("tub", "pot"),
    "strawberry": ("strawberry", "strawberries"),
    "lemon": ("lemon", "citrus"),
    "chocolate": ("chocolate", "choc"),
    "vanilla": ("vanilla",),
    "garlic": ("garlic", "garlicky"),
    "chilli": ("chilli", "spicy", "hot"),
    "honey": ("honey",),
    "smoked": ("smoked", "smoky"),
    "sliced": ("sliced", "slices"),
    "roasted": ("roasted", "oven roasted"),
    "frozen": ("frozen", "deep frozen"),
    "ground": ("ground", "minced"),
    "organic": ("organic", "bio"),
    "gluten free": ("gluten free", "no gluten"),
    "vegan": ("vegan", "plant based"),
    "sugar free": ("sugar free", "no sugar", "zero sugar"),
    "low salt": ("low salt", "low sodium"),
    "lactose free": ("lactose free", "dairy free"),
}
"""How shoppers and titles say an attribute, the usual word first."""

DEPARTMENTS: tuple[Department, ...] = (
    Department(
        name="dairy",
        packs=("tub", "bottle", "box"),
        flavours=("strawberry", "vanilla", "honey", "garlic"),
        preparations=("sliced", "smoked"),
        diets=("organic", "lactose free", "sugar free", "low salt"),
        types=(
            ("yogurt", ("yoghurt", "skyr"), 2.4),
            ("milk", ("dairy milk",), 1.6),
            ("custard", ("pudding",), 2.2),
            ("cream cheese", ("soft cheese",), 2.9),
            ("cheddar", ("hard cheese", "cheese block"), 4.5),
        ),
    ),
    Department(
        name="bakery",
        packs=("bag", "box"),
        flavours=("chocolate", "garlic", "honey", "lemon"),
        preparations=("sliced", "frozen"),
        diets=("organic", "gluten free", "vegan", "low salt"),
        types=(
            ("bagels", ("bagel rolls",), 2.8),
            ("sandwich bread", ("toast loaf", "loaf"), 2.1),
            ("tortillas", ("wraps", "flatbread"), 2.5),
            ("muffins", ("cupcakes",), 3.6),
            ("croissants", ("breakfast pastries",), 3.9),
        ),
    ),
    Department(
        name="soft drinks",
        packs=("can", "bottle", "box"),
        flavours=("strawberry", "lemon", "vanilla", "honey"),
        preparations=("frozen",),
        diets=("organic", "sugar free", "vegan"),
        types=(
            ("soda", ("pop", "soft drink"), 1.8),
            ("sparkling water", ("seltzer", "fizzy water"), 1.2),
            ("iced tea", ("ice tea", "cold tea"), 1.9),
            ("orange juice", ("oj",), 3.1),
            ("smoothie", ("fruit shake",), 3.4),
        ),
    ),
    Department(
        name="coffee and tea",
        packs=("bag", "jar", "box", "can"),
        flavours=("vanilla", "chocolate", "lemon", "honey"),
        preparations=("roasted", "ground"),
        diets=("organic", "sugar free", "vegan"),
        types=(
            ("coffee", ("java", "coffee beans"), 6.9),
            ("espresso pods", ("coffee capsules",), 5.8),
            ("cold brew", ("iced coffee",), 3.2),
            ("black tea", ("english tea",), 3.4),
            ("cocoa", ("drinking powder", "hot cocoa"), 4.1),
        ),
    ),
    Department(
        name="cereal and spreads",
        packs=("box", "jar", "bag"),
        flavours=("strawberry", "chocolate", "honey", "vanilla"),
        preparations=("roasted", "ground"),
        diets=("organic", "gluten free", "vegan", "sugar free"),
        types=(
            ("cornflakes", ("corn cereal",), 3.3),
            ("granola", ("muesli",), 4.6),
            ("oatmeal", ("porridge", "rolled oats"), 2.9),
            ("jam", ("preserves", "fruit spread"), 3.2),
            ("peanut butter", ("nut spread",), 3.8),
        ),
    ),
    Department(
        name="snacks",
        packs=("bag", "can", "box"),
        flavours=("chilli", "garlic", "honey", "lemon"),
        preparations=("roasted", "smoked", "sliced"),
        diets=("organic", "gluten free", "vegan", "low salt"),
        types=(
            ("potato chips", ("crisps",), 2.6),
            ("pretzels", ("salty twists",), 2.4),
            ("popcorn", ("puffed corn",), 2.2),
            ("mixed nuts", ("nut mix", "cashews and almonds"), 5.9),
            ("trail mix", ("hiking mix", "fruit and nuts"), 5.2),
        ),
    ),
    Department(
        name="sweets",
        packs=("box", "bag", "tub"),
        flavours=("strawberry", "chocolate", "vanilla", "lemon"),
        preparations=("frozen",),
        diets=("organic", "gluten free", "vegan", "sugar free", "lactose free"),
        types=(
            ("candy bar", ("sweet bar",), 1.5),
            ("cookies", ("biscuits",), 2.9),
            ("gummies", ("gummy bears", "jelly candy"), 2.1),
            ("ice cream", ("gelato",), 5.1),
            ("sorbet", ("fruit ice",), 4.6),
        ),
    ),
    Department(
        name="seafood",
        packs=("can", "bag", "jar", "box"),
        flavours=("lemon", "garlic", "chilli"),
        preparations=("smoked", "sliced", "frozen"),
        diets=("organic", "low salt", "gluten free"),
        types=(
            ("salmon", ("salmon fillet",), 8.2),
            ("tuna", ("tuna chunks", "albacore"), 3.9),
            ("mackerel", ("herring",), 4.2),
            ("shrimp", ("prawns",), 8.9),
            ("mussels", ("shellfish",), 6.4),
        ),
    ),
    Department(
        name="meat",
        packs=("box", "bag", "can"),
        flavours=("honey", "garlic", "chilli"),
        preparations=("smoked", "sliced", "roasted", "frozen", "ground"),
        diets=("organic", "low salt", "gluten free"),
        types=(
            ("ham", ("gammon",), 4.9),
            ("turkey breast", ("turkey",), 6.1),
            ("salami", ("pepperoni", "cured sausage"), 4.4),
            ("bacon", ("rashers", "streaky strips"), 5.2),
            ("sausages", ("bratwurst", "bangers"), 5.6),
        ),
    ),
    Department(
        name="vegetables",
        packs=("can", "bag", "jar"),
        flavours=("garlic", "chilli", "lemon"),
        preparations=("sliced", "roasted", "frozen"),
        diets=("organic", "low salt", "vegan"),
        types=(
            ("tomatoes", ("plum tomatoes",), 1.7),
            ("peppers", ("capsicum", "bell peppers"), 2.3),
            ("mushrooms", ("champignons",), 2.4),
            ("green beans", ("string beans",), 1.9),
            ("chickpeas", ("garbanzo beans",), 1.6),
        ),
    ),
    Department(
        name="pantry",
        packs=("bag", "box", "jar", "bottle"),
        flavours=("garlic", "chilli", "lemon"),
        preparations=("roasted", "ground"),
        diets=("organic", "gluten free", "vegan", "low salt"),
        types=(
            ("pasta", ("noodles", "macaroni"), 1.9),
            ("rice", ("basmati",), 2.7),
            ("couscous", ("bulgur",), 2.3),
            ("olive oil", ("cooking oil",), 8.4),
            ("vinegar", ("balsamic",), 3.7),
        ),
    ),
    Department(
        name="sauces",
        packs=("bottle", "jar", "tub", "can"),
        flavours=("garlic", "chilli", "honey", "lemon"),
        preparations=("smoked", "roasted"),
        diets=("organic", "gluten free", "vegan", "sugar free", "low salt"),
        types=(
            ("ketchup", ("catsup",), 2.4),
            ("mustard", ("dijon",), 2.2),
            ("mayonnaise", ("mayo",), 2.9),
            ("hummus", ("chickpea dip",), 3.3),
            ("salsa", ("taco dip",), 3.1),
        ),
    ),
)

NEEDS: dict[str, tuple[str, ...]] = {
    "breakfast": ("cornflakes", "granola", "oatmeal", "yogurt", "bagels", "croissants", "bacon"),
    "lunch box": ("sandwich bread", "ham", "cream cheese", "tortillas", "smoothie"),
    "barbecue": ("sausages", "ketchup", "mustard", "peppers", "salmon"),
    "movie night": ("popcorn", "potato chips", "soda", "gummies", "ice cream"),
    "party": ("potato chips", "salsa", "pretzels", "soda", "hummus"),
    "hiking": ("trail mix", "mixed nuts", "candy bar", "iced tea"),
    "italian dinner": ("pasta", "tomatoes", "olive oil", "salami", "mushrooms"),
    "dessert": ("ice cream", "sorbet", "custard", "cookies", "muffins"),
    "picnic": ("croissants", "cheddar", "ham", "orange juice", "cookies"),
    "salad": ("tomatoes", "chickpeas", "olive oil", "vinegar", "tuna"),
}
"""What a need asks for: its types are what the shopper wants."""

NEED_PHRASES = ("{}", "{} ideas", "something for {}", "{} food", "for {}")
DEPARTMENT_PHRASES = ("{}", "{} offers", "best {}")

BRANDS: tuple[str, ...] = tuple(
    first + last
    for first in ("Al", "Bre", "Cor", "Del", "Fen", "Gro", "Hal", "Jun", "Kel", "Lor")
    for last in ("dora", "mont", "vale", "ria", "wick", "nest", "sun", "by")
)
"""Eighty invented names."""

SIZES = ("100 g", "250 g", "400 g", "500 g", "750 g", "1 kg", "6 pack", "12 pack")
SIZE_FACTORS = (0.5, 0.8, 1.0, 1.2, 1.6, 2.0, 2.4, 4.0)
"""Price factor of each size."""

FILLERS = ("classic", "family", "fresh", "premium", "original", "everyday", "select", "home style")
"""Words in titles that mean nothing."""

TYPE_NAMES: tuple[str, ...] = tuple(t[0] for d in DEPARTMENTS for t in d.types)
TYPE_SYNONYMS: tuple[tuple[str, ...], ...] = tuple(t[1] for d in DEPARTMENTS for t in d.types)
TYPE_PRICES: tuple[float, ...] = tuple(t[2] for d in DEPARTMENTS for t in d.types)
TYPE_DEPARTMENT: tuple[int, ...] = tuple(i for i, d in enumerate(DEPARTMENTS) for _ in d.types)
TYPE_SUBSTITUTES: tuple[int, ...] = tuple(
    2 * i + (k >= 3) for i, d in enumerate(DEPARTMENTS) for k in range(len(d.types))
)
"""Types with the same number substitute each other."""
