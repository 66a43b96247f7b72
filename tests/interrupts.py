"""Interrupts at a chosen place."""


class InterruptAfter:
    """An object, raising KeyboardInterrupt right after the n-th call of a method returned: where signals arrive."""

    def __init__(self, inner, method, n):
        self._inner, self._method, self._left = inner, method, n

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if name != self._method:
            return value

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            return result

        return call
