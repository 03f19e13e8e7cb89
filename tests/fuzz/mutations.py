"""Files with a few bytes changed."""

from hypothesis import strategies as st

_WORDS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"\x00\x01"]


@st.composite
def mutated(draw, contents):
    """One of the contents after up to four changes: bytes replaced, cut out, zeroed or repeated."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers are at the start, and most of what leads to headers at the end.
        near = st.integers(0, min(200, len(content)))
        place = draw(
            st.one_of(near, near.map(lambda n: len(content) - n), st.integers(0, len(content)))
        )
        kind = draw(st.sampled_from(["byte", "word", "cut", "zeros", "repeat", "end"]))
        length = draw(st.integers(1, 600))
        if kind == "byte":
            content[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "word":
            word = draw(st.sampled_from(_WORDS))
            content[place : place + len(word)] = word
        elif kind == "cut":
            del content[place : place + length]
        elif kind == "zeros":
            content[place : place + length] = bytes(len(content[place : place + length]))
        elif kind == "repeat":
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
    return bytes(content)
