"""Decrypts a range of a medium with the `cryptography` package: AES-XTS, one data unit per block, the block's number as tweak.

Arguments: FILE KEY(base64) BLOCK-SIZE FIRST-BLOCK BLOCKS. The plaintext goes to standard output.
"""

import base64
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

path, key, size, first, count = sys.argv[1], base64.b64decode(sys.argv[2]), *map(int, sys.argv[3:6])
with open(path, "rb") as medium:
    medium.seek(first * size)
    for block in range(first, first + count):
        decryptor = Cipher(algorithms.AES(key), modes.XTS(block.to_bytes(16, "little"))).decryptor()
        sys.stdout.buffer.write(decryptor.update(medium.read(size)) + decryptor.finalize())
