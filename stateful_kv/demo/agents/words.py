"""The vocabulary of the seeded worlds: names, items, services, parts of file paths and of code."""

# ruff: noqa: SIM905 - lists of words read best as text

FIRST = (
    "Ana Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Nils Olga Pavel Quinn Rosa Sven Tara "
    "Umar Vera Wen Yara Zoe Aldo Bella Chen Dora Emil"
).split()
LAST = (
    "Alvarez Berg Costa Duarte Evans Fischer Gupta Hansen Ivanov Jensen Kowalski Lopez Meyer Novak Okafor Petrov "
    "Quist Rossi Silva Tanaka Ueda Varga Weber Young Zhang Abbas Brandt Cohen Dahl Eriksen"
).split()
MATERIALS = "oak pine steel glass wool cotton leather copper bamboo marble linen brass".split()
THINGS = "desk lamp rug chair rack bookcase table mirror shelf bench clock vase sofa stool".split()
STATUSES = "late shipped delivered open packed returned lost paid".split()
PLANS = "basic standard plus team free".split()

SERVICES = (
    "billing checkout search mailer catalog gateway inventory payments profile reports sessions storage tracking "
    "uploads webhooks scheduler notifier exporter importer indexer recommender pricing shipping auth"
).split()
METRICS = "queue_depth error_rate latency memory_use disk_use cpu_load open_files lag".split()
SETTINGS = "workers timeout retries cache_size batch_size max_conns backoff threads".split()

FOLDERS = "src lib app core utils tools server client".split()
MODULES = (
    "fees parser cache router tokens users queue batch events images scores layout models fields frames blocks index "
    "query merge split config state table store graph shape export import render convert filter sorter signals "
    "invoice basket address region currency limits access report backup archive monitor"
).split()
VERBS = "parse load save merge split count apply check build format resolve update pick scale round trim".split()
NOUNS = "fee row key page score user event batch field price date total token index node line".split()
CONSTANTS = "limit size depth rate step margin bonus offset factor base ratio grace".split()
PARAMETERS = "days cents items width left right first last value weight hours units".split()
