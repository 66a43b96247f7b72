"""Other engines' interfaces over the ops of stateful_kv."""
