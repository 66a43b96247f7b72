"""plan_step and commit_step in plain Python, one sequence after the other, from what step_ops.py says of them."""


def wish(s):
    """(start, rows of known tokens, drafts) that a sequence asks for; s: a dict of its state."""
    if s["finished"] or not s["history"]:
        return None
    length, computed = len(s["history"]), s["computed"]
    start = min(computed, length - 1)
    known = min(length - start, s["num_slots"] - start, s["max_rows"])
    if known <= 0:
        return None
    drafts = 0
    if length - start == 1:
        limits = (len(s["drafts"]), s["draft_limit"], s["max_length"] - length - 1, s["num_slots"] - length)
        drafts = max(0, min(*limits, s["max_rows"] - 1))
    return start, known, drafts


def plan(sequences, max_tokens, max_logit_rows, block_size):
    """Per sequence (positions, tokens, slots, logit rows); those of sequences that feed nothing are empty."""
    wishes = [wish(s) for s in sequences]
    granted = min(sum(w is not None for w in wishes), max_tokens, max_logit_rows)
    spare_rows, spare_logits = max_tokens - granted, max_logit_rows - granted
    answer = []
    for s, w in zip(sequences, wishes):
        if w is None or granted == 0:
            answer.append(([], [], [], 0))
            continue
        granted -= 1
        start, known, drafts = w
        drafts = min(drafts, max(spare_logits, 0))
        spare_logits -= w[2]
        rows = 1 + min(known - 1 + drafts, max(spare_rows, 0))
        spare_rows -= known - 1 + drafts
        length = len(s["history"])
        positions = list(range(start, start + rows))
        tokens = [(s["history"] + s["drafts"])[p] for p in positions]
        blocks = s["blocks"]
        slots = [-1 if p < s["computed"] else blocks[p // block_size] * block_size + p % block_size for p in positions]
        answer.append((positions, tokens, slots, max(0, start + rows - length + 1)))
    return answer


def commit(s, rows, logit_rows, tokens):
    """The sequence's state after a step; tokens: those verified."""
    s = dict(s, history=list(s["history"]))
    length = len(s["history"])
    if rows == 0:
        return s
    if logit_rows == 0:
        return dict(s, computed=max(s["computed"], min(s["computed"], length - 1) + rows))
    if not tokens:
        return dict(s, finished=3)
    for token in tokens:
        s["history"].append(token)
        if token in s["stops"]:
            s["finished"] = 1
        elif len(s["history"]) >= s["max_length"]:
            s["finished"] = 2
        if s["finished"]:
            break
    s["computed"] = max(s["computed"], min(length + len(tokens) - 1, len(s["history"])))
    return s
