"""Named random streams (src/data/src/random.rs), drawn by an independent implementation: ChaCha8 and BLAKE3 in plain Python.

Pinned: the standard library alone. ChaCha is checked at 20 rounds against RFC 8439, BLAKE3 against its published test
vectors, before anything is written. Run: python tests/golden/make/data_random.py
"""

import json
import math
import pathlib
import struct

OUT = pathlib.Path(__file__).parent.parent / "data" / "data" / "random.json"
MASK = 0xFFFFFFFF


def rotl(x, n):
    return ((x << n) | (x >> (32 - n))) & MASK


def rotr(x, n):
    return rotl(x, 32 - n)


def chacha_block(key, counter, nonce, rounds):
    """`nonce` are the last words of the state; rand_chacha: 64-bit counter, 64-bit stream number."""
    state = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), *counter, *nonce]
    x = list(state)

    def quarter(a, b, c, d):
        x[a] = (x[a] + x[b]) & MASK; x[d] = rotl(x[d] ^ x[a], 16)
        x[c] = (x[c] + x[d]) & MASK; x[b] = rotl(x[b] ^ x[c], 12)
        x[a] = (x[a] + x[b]) & MASK; x[d] = rotl(x[d] ^ x[a], 8)
        x[c] = (x[c] + x[d]) & MASK; x[b] = rotl(x[b] ^ x[c], 7)

    for _ in range(rounds // 2):
        quarter(0, 4, 8, 12); quarter(1, 5, 9, 13); quarter(2, 6, 10, 14); quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15); quarter(1, 6, 11, 12); quarter(2, 7, 8, 13); quarter(3, 4, 9, 14)
    return [(a + b) & MASK for a, b in zip(x, state)]


IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]


def blake3_compress(chaining, block, length, flags):
    m = list(struct.unpack("<16I", block))
    v = list(chaining) + IV[:4] + [0, 0, length, flags]

    def g(a, b, c, d, x, y):
        v[a] = (v[a] + v[b] + x) & MASK; v[d] = rotr(v[d] ^ v[a], 16)
        v[c] = (v[c] + v[d]) & MASK; v[b] = rotr(v[b] ^ v[c], 12)
        v[a] = (v[a] + v[b] + y) & MASK; v[d] = rotr(v[d] ^ v[a], 8)
        v[c] = (v[c] + v[d]) & MASK; v[b] = rotr(v[b] ^ v[c], 7)

    for _ in range(7):
        g(0, 4, 8, 12, m[0], m[1]); g(1, 5, 9, 13, m[2], m[3]); g(2, 6, 10, 14, m[4], m[5]); g(3, 7, 11, 15, m[6], m[7])
        g(0, 5, 10, 15, m[8], m[9]); g(1, 6, 11, 12, m[10], m[11]); g(2, 7, 8, 13, m[12], m[13]); g(3, 4, 9, 14, m[14], m[15])
        m = [m[i] for i in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3_chunk(key, data, flags):
    """One chunk (at most 1,024 bytes), which is also the root."""
    assert len(data) <= 1024
    blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
    chaining = key
    for i, block in enumerate(blocks):
        f = flags | (1 if i == 0 else 0) | (2 | 8 if i == len(blocks) - 1 else 0)
        chaining = blake3_compress(chaining, block.ljust(64, b"\0"), len(block), f)
    return chaining


def derive_key(context, material):
    key = blake3_chunk(IV, context.encode(), 32)
    return struct.pack("<8I", *blake3_chunk(key, material, 64))


class Stream:
    def __init__(self, seed, name):
        self.key = derive_key("levain random stream v1", struct.pack("<Q", seed) + name.encode())
        self.position = 0

    def next_u64(self):
        word = self.position * 2
        block = chacha_block(self.key, [(word // 16) & MASK, (word // 16) >> 32], [0, 0], 8)
        self.position += 1
        return block[word % 16] | block[word % 16 + 1] << 32

    def uniform(self):
        return (self.next_u64() >> 11) * 2.0**-53

    def below(self, bound):
        while True:
            product = self.next_u64() * bound
            if (product & (2**64 - 1)) >= 2**64 % bound:
                return product >> 64

    def normal(self):
        u, v = self.uniform(), self.uniform()
        return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)

    def permutation(self, n):
        items = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


def check():
    # RFC 8439, 2.3.2.
    key = bytes(range(32))
    nonce = list(struct.unpack("<3I", bytes.fromhex("000000090000004a00000000")))
    assert chacha_block(key, [1], nonce, 20)[:4] == [0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3]
    # BLAKE3's test_vectors.json: the hash of no bytes, and derive_key of no bytes in the vectors' context.
    assert struct.pack("<8I", *blake3_chunk(IV, b"", 0)).hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    assert derive_key(context, b"").hex().startswith("2cc39783c223154fea8dfb7c1b1660f2")


def main():
    check()
    cases = []
    for seed, name in [(0, "shuffle"), (17, "init"), (2**64 - 1, "dropout"), (17, "Gewürz")]:
        draw = Stream(seed, name)
        numbers = [draw.next_u64() for _ in range(20)]
        cases.append({
            "seed": str(seed),
            "name": name,
            "next_u64": [str(n) for n in numbers],
            "uniform": [Stream.uniform(s) for s in [Stream(seed, name)] for _ in range(4)],
            "normal": [Stream.normal(s) for s in [Stream(seed, name)] for _ in range(4)],
            "below": [Stream.below(s, b) for s in [Stream(seed, name)] for b in (1, 2, 6, 1000, 2**40 + 1)],
            "permutation": Stream(seed, name).permutation(23),
        })
    # A bound at which nearly half of the draws are rejected.
    draw = Stream(5, "reject")
    reject = {"seed": "5", "name": "reject", "bound": str(2**63 + 1)}
    reject["below"] = [str(draw.below(2**63 + 1)) for _ in range(12)]
    reject["position"] = draw.position
    OUT.write_text(json.dumps({"cases": cases, "reject": reject}, indent=1) + "\n")


main()
