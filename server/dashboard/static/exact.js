// JSON with whole numbers of any size: one that a Number would round, such as a seed above 2^53, is read as a BigInt and written as it was.

const HAS_LONG = /[:[,]\s*-?\d{16,}(?![\d.eE])/;

/** Read JSON. Browsers of before 2025, which do not show a number's text, round long ones. */
export function read(text) {
  return HAS_LONG.test(text) ? JSON.parse(text, (_, value, context) => exactly(value, context?.source)) : JSON.parse(text);
}

export const write = (value, indent) => JSON.stringify(value, (_, one) => (typeof one === "bigint" ? JSON.rawJSON(String(one)) : one), indent);

/** Return the number that a text stands for: `value`, or a BigInt where that is rounded. */
export const exactly = (value, text) => (typeof value === "number" && !Number.isSafeInteger(value) && /^[-+]?\d+$/.test(text ?? "") ? BigInt(text) : value);
