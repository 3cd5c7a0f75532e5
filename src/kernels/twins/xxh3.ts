/** The default secret of XXH3, as 64-bit words. */
const SECRET_WORDS = [
  0xbe4ba423396cfeb8n,
  0x1cad21f72c81017cn,
  0xdb979083e96dd4den,
  0x1f67b3b7a4a44072n,
  0x78e5c0cc4ee679cbn,
  0x2172ffcc7dd05a82n,
  0x8e2443f7744608b8n,
  0x4c263a81e69035e0n,
  0xcb00c391bb52283cn,
  0xa32e531b8b65d088n,
  0x4ef90da297486471n,
  0xd8acdea946ef1938n,
  0x3f349ce33f76faa8n,
  0x1d4f0bc7c7bbdcf9n,
  0x3159b4cd4be0518an,
  0x647378d9c97e9fc8n,
  0xc3ebd33483acc5ean,
  0xeb6313faffa081c5n,
  0x49daf0b751dd0d17n,
  0x9e68d429265516d3n,
  0xfca1477d58be162bn,
  0xce31d07ad1b8f88fn,
  0x280416958f3acb45n,
  0x7e404bbbcafbd7afn,
];
const SECRET = new DataView(BigUint64Array.from(SECRET_WORDS).buffer);

const PRIME32_1 = 0x9e3779b1n;
const PRIME64_1 = 0x9e3779b185ebca87n;
const PRIME_MX1 = 0x165667919e3779f9n;
const INITIAL = [
  0xc2b2ae3dn,
  PRIME64_1,
  0xc2b2ae3d27d4eb4fn,
  0x165667b19e3779f9n,
  0x85ebca77c2b2ae63n,
  0x85ebca77n,
  0x27d4eb2f165667c5n,
  PRIME32_1,
];

const MASK = (1n << 64n) - 1n;
const LOW = (1n << 32n) - 1n;

const BLOCK_BYTES = 1024;
const STRIPE_BYTES = 64;
/** The secret moves on by this many bytes per stripe. */
const SECRET_STEP = 8;

/**
 * XXH3-64 with seed 0 and the default secret, step by step as its specification has it.
 * @param bytes longer than 240: shorter ones go another way, which no page takes
 */
export function xxh3(bytes: Uint8Array): bigint {
  const { length } = bytes;
  if (length <= 240) throw new RangeError(`${length} bytes are too few`);
  const input = new DataView(bytes.buffer, bytes.byteOffset, length);
  const secret = (at: number) => SECRET.getBigUint64(at, true);
  const acc = [...INITIAL];
  const accumulate = (at: number, key: number) => {
    for (let i = 0; i < 8; i++) {
      const value = input.getBigUint64(at + i * 8, true);
      const keyed = value ^ secret(key + i * 8);
      acc[i ^ 1] = (acc[i ^ 1] + value) & MASK;
      acc[i] = (acc[i] + (keyed & LOW) * (keyed >> 32n)) & MASK;
    }
  };
  const last = length - 1;
  for (let stripe = 0; stripe < Math.floor(last / STRIPE_BYTES); stripe++) {
    const at = stripe * STRIPE_BYTES;
    accumulate(at, ((at % BLOCK_BYTES) / STRIPE_BYTES) * SECRET_STEP);
    if ((at + STRIPE_BYTES) % BLOCK_BYTES !== 0) continue;
    for (let i = 0; i < 8; i++) acc[i] = ((acc[i] ^ (acc[i] >> 47n) ^ secret(128 + i * 8)) * PRIME32_1) & MASK;
  }
  accumulate(length - STRIPE_BYTES, 121);
  let hash = (BigInt(length) * PRIME64_1) & MASK;
  for (let i = 0; i < 8; i += 2) {
    const product = (acc[i] ^ secret(11 + i * 8)) * (acc[i + 1] ^ secret(19 + i * 8));
    hash = (hash + ((product & MASK) ^ (product >> 64n))) & MASK;
  }
  hash = ((hash ^ (hash >> 37n)) * PRIME_MX1) & MASK;
  return hash ^ (hash >> 32n);
}
