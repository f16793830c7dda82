"""Word lists of the generated repositories: common short English words, none a builtin or a standard module."""

from __future__ import annotations

PACKAGES = tuple(
    "shop bank farm store hotel school garden kitchen office market harbor museum garage studio"
    " clinic bakery forest island castle stable orchard tavern depot arena".split()
)
MODULES = tuple(
    "cart stock text names prices report labels ledger score filter totals orders guests routes"
    " plans notes tables units grades menu lists rules ranks tools audit basket views panel".split()
)
CLASSES = tuple("Cart Box Shelf Team Wallet Gauge Scale Drawer Bucket Folder Meter Crate".split())

# Plural and singular; the plural names a list parameter, the singular its loop variable.
NUMBERS = tuple(
    tuple(pair.split("/"))
    for pair in (
        "prices/price scores/score sizes/size costs/cost ages/age weights/weight marks/mark fees/fee rates/rate"
        " sales/sale points/point taxes/tax loads/load depths/depth widths/width gains/gain"
    ).split()
)
NAMES = tuple(
    tuple(pair.split("/"))
    for pair in (
        "names/name words/word items/item tags/tag titles/title colors/color towns/town books/book"
        " fruits/fruit tools/tool games/game songs/song teams/team rooms/room birds/bird"
    ).split()
)
AMOUNTS = tuple(
    "low high limit level fee step extra bonus base goal target floor share gap minimum amount charge credit".split()
)
TEXTS = tuple("text line phrase title label note message remark caption slogan".split())
LETTERS = ("letter", "sign", "mark", "char")
TABLES = tuple("stock counts votes prices shares stores ages points".split())
KEYS = tuple("price count size age cost rate width depth level fee tax".split())
THINGS = tuple("value amount size rate score level share place grade offer range part".split())

# Local variables, by their role in the body.
LOCALS = {
    "acc": ("total", "result", "answer", "amount", "tally"),
    "out": ("kept", "found", "chosen", "picked", "made"),
    "best": ("best", "winner", "leader", "top"),
    "i": ("i", "index", "place", "spot"),
    "t": ("new", "built", "final", "joined"),
    "ch": ("ch", "symbol", "sound"),
    "key": ("key", "entry", "field"),
}

# What test inputs are made of.
SAMPLES = tuple(
    "red fox sun map owl tea ant bee cup hat ink jam oak pie rug van zoo apple bread cloud drum egg fish goat"
    " lamp moon nest pearl queen river stone tiger wood level noon".split()
)
SHORT = tuple(word for word in SAMPLES if len(word) == 3)
