"""The vocabulary of the seeded worlds: names of people, and one pool of words for everything else that has a name.

The pool is large and shared: a word says nothing on what it names, so a model has to copy it from where it stands.
"""

# ruff: noqa: SIM905 - lists of words read best as text

FIRST = (
    "Ana Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Nils Olga Pavel Quinn Rosa Sven Tara "
    "Umar Vera Wen Yara Zoe Aldo Bella Chen Dora Emil"
).split()
LAST = (
    "Alvarez Berg Costa Duarte Evans Fischer Gupta Hansen Ivanov Jensen Kowalski Lopez Meyer Novak Okafor Petrov "
    "Quist Rossi Silva Tanaka Ueda Varga Weber Young Zhang Abbas Brandt Cohen Dahl Eriksen"
).split()
STATUSES = "late shipped delivered open packed returned lost paid".split()
PLANS = "basic standard plus team free".split()

WORDS = (
    "billing checkout search mailer catalog gateway inventory payments profile reports sessions storage tracking "
    "uploads webhooks notifier exporter importer indexer pricing shipping auth cache queue error latency memory "
    "disk load files lag workers timeout retries batch conns backoff threads fees parser router tokens users events "
    "images scores layout models fields frames blocks index query merge split config state table store graph shape "
    "render convert filter sorter signals invoice basket address region currency limits access archive monitor parse "
    "save count apply check build format resolve update pick scale round trim fee row key page score event field "
    "price date total node line limit size depth rate step margin bonus offset factor base ratio grace days cents "
    "items width left right value weight hours units oak pine steel glass wool cotton leather copper bamboo marble "
    "linen brass desk lamp rug chair rack bench shelf mirror clock vase sofa stool river stone cloud forest meadow "
    "harbor island bridge tunnel valley canyon desert garden orchard window ladder hammer anchor basin beacon candle "
    "carpet castle cellar circle corner cradle crystal curtain diamond dragon eagle falcon feather flame galaxy "
    "glacier hollow jacket jungle kettle lantern lemon magnet maple market mosaic needle nickel ocean olive onion "
    "orbit paddle panel parrot pebble pepper pilot planet pocket prism puzzle quartz rabbit radar ribbon rocket saddle "
    "sailor salmon shadow shield signal silver spider spiral spring square stable summit sunset temple thunder tiger "
    "timber torch tower tulip turtle velvet violet walnut whale willow winter wizard yellow zebra amber arrow autumn"
).split()
FOLDERS, MODULES = WORDS[::6], WORDS[1::3]  # of paths: `FOLDER/MODULE.py`
TAILS = WORDS[2::5]  # second parts of names: `WORD_TAIL`
