"""Numbers in messages."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 classes", "1,209 images"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
