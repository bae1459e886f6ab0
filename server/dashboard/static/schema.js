// What a form needs to know of a JSON Schema, and changes of a document by path. No markup in here.

import { exactly, read, write } from "./exact.js";
import { count } from "./format.js";

/** Follow "$ref", and take `null` out of "anyOf": {schema, isNullable}. */
export function resolve(schema, root) {
  let isNullable = false;
  for (;;) {
    if (schema.$ref) {
      const { $ref, ...beside } = schema;
      schema = { ...root.$defs[$ref.split("/").at(-1)], ...beside };
    } else if (schema.anyOf?.some((one) => one.type === "null")) {
      const { anyOf, ...beside } = schema;
      const others = anyOf.filter((one) => one.type !== "null");
      schema = others.length === 1 ? { ...others[0], ...beside } : { ...beside, anyOf: others };
      isNullable = true;
    } else return { schema, isNullable };
  }
}

/** What kind of field a resolved schema is: "choice", "flag", "number", "text", "list", "named", "group", "variants" or "json". */
export function kindOf(schema) {
  if (schema.enum) return "choice";
  if (schema.oneOf && schema.discriminator) return "variants";
  if (schema.type === "boolean") return "flag";
  if (schema.type === "integer" || schema.type === "number") return "number";
  if (schema.type === "string") return "text";
  if (schema.type === "array") return "list";
  if (schema.type === "object" && schema.additionalProperties === true) return "named";
  if (schema.type === "object" && schema.properties) return "group";
  return "json";
}

/** The rule of a field in words: "at least 1, at most 100". */
export function ruleOf(schema) {
  const rules = [
    schema.type === "integer" && "whole number",
    schema.minimum !== undefined && `at least ${bound(schema.minimum)}`,
    schema.exclusiveMinimum !== undefined && `above ${bound(schema.exclusiveMinimum)}`,
    schema.maximum !== undefined && `at most ${bound(schema.maximum)}`,
    schema.exclusiveMaximum !== undefined && `below ${bound(schema.exclusiveMaximum)}`,
  ];
  return rules.filter(Boolean).join(", ");
}

function bound(number) {
  const power = Math.log2(Number(number));
  if (Number.isInteger(power) && Math.abs(power) > 20) return `2^${power}`;
  return Number.isInteger(number) ? count(number) : String(number);
}

/** Return the value at a path of keys, or undefined. */
export const valueAt = (document, path) => path.reduce((part, key) => part?.[key], document);

/** Return a copy of the document with another value at a path; undefined removes the key. */
export function withValue(document, path, value) {
  if (!path.length) return value;
  const [key, ...rest] = path;
  const copy = { ...document };
  const inner = withValue(copy[key] ?? {}, rest, value);
  if (inner === undefined) delete copy[key];
  else copy[key] = inner;
  return copy;
}

/** Read what was typed for a number; what is none is passed on as text, so that the coordinator says what is wrong with it. */
export function readNumber(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  const number = Number(trimmed);
  return Number.isFinite(number) ? exactly(number, trimmed) : trimmed;
}

/** Read what was typed as JSON, or else as text: "[16, 32]", "true", "adam". */
export function readAny(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  try {
    return exactly(read(trimmed), trimmed);
  } catch {
    return trimmed;
  }
}

/** Read a list: "16, 32" or "[16, 32]". */
export function readList(text) {
  const whole = readAny(text);
  if (whole === undefined || Array.isArray(whole)) return whole;
  return text.split(",").map(readAny).filter((item) => item !== undefined);
}

export const shown = (value) => (value === undefined ? "" : typeof value === "string" ? value : Array.isArray(value) ? value.map((one) => (typeof one === "object" ? write(one) : one)).join(", ") : write(value));

/** Return the JSON merge patch (RFC 7396) that turns one document into another. */
export function mergePatch(from, to) {
  const patch = {};
  for (const key of new Set([...Object.keys(from), ...Object.keys(to)])) {
    if (!(key in to)) patch[key] = null;
    else if (isMapping(from[key]) && isMapping(to[key])) {
      const inner = mergePatch(from[key], to[key]);
      if (Object.keys(inner).length) patch[key] = inner;
    } else if (write(from[key]) !== write(to[key])) patch[key] = to[key];
  }
  return patch;
}

const isMapping = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
