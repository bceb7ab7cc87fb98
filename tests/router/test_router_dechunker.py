"""Chunks taken off a body, wherever reads cut it."""

from hypothesis import given
from hypothesis import strategies as st
from router_relay_mocks import cut

from pdctl.router.upstream.dechunker import Dechunker


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(0, 400), max_size=10),
    st.sampled_from([b"", b";a=1", b";a", b';a="b;c"']),
    st.sampled_from([b"", b"X-Trailer: 1\r\n", b"A: 1\r\nB: 2\r\n"]),
)
def test_chunks_come_off_wherever_reads_cut_them(
    chunks: list[bytes], places: list[int], extension: bytes, trailers: bytes
):
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    framed += b"0%b\r\n%b\r\n" % (extension, trailers)
    dechunker = Dechunker()
    pieces = [dechunker.feed(piece) for piece in cut(framed, *(place for place in places if place < len(framed)))]
    assert b"".join(pieces) == b"".join(chunks)


def test_a_chunk_comes_off_as_soon_as_it_is_there():
    dechunker = Dechunker()
    assert [dechunker.feed(piece) for piece in (b"5\r\nab", b"cd", b"e\r\n2\r\nxy\r\n", b"0\r\n\r\n")] == [
        b"ab",
        b"cd",
        b"exy",
        b"",
    ]
