"""Tool-calling agents for the embedded model: a seeded world, its tools, the tasks done in it, and training on them.

Reading order: world.py (data and tools), tasks.py (what users ask and how it is done), episodes.py (conversations),
chat.py (as tokens), network.py and train.py (the model), evaluate.py (how well it does), crew.py (the demo).
"""
