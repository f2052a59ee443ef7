'use strict';

/** How values become the text of a log entry, and how errors become the text of a failure. */

const { types } = require('node:util');
const { wholeCharacters } = require('./frame-writer.js');

const ENTRY_LIMIT = 8000;
const CUT_NOTICE = `... Log truncated due to size limit (${ENTRY_LIMIT} characters)`;
const MOST_CAUSES = 4;

/** One log entry: the values joined by a space, cut to the size limit. */
function formatEntry(values) {
  return cut(values.length === 1 ? formatValue(values[0]) : values.map(formatValue).join(' '));
}

/** The text of something thrown, with its stack trace and its causes if it has them. */
function formatThrown(thrown) {
  let text = formatValue(thrown);
  let cause = causeOf(thrown);
  for (let left = MOST_CAUSES; cause !== undefined && left > 0; left--) {
    text += `\nCaused by: ${formatValue(cause)}`;
    cause = causeOf(cause);
  }
  return text;
}

function formatValue(value) {
  if (typeof value === 'string') return value;
  if (typeof value !== 'object' || value === null) return String(value);
  try {
    if (isError(value)) return stackOf(value);
    return JSON.stringify(value, readable) ?? String(value);
  } catch {
    return plainForm(value);
  }
}

function stackOf(error) {
  const { stack } = error;
  return typeof stack === 'string' && stack !== '' ? stack : String(error);
}

function causeOf(thrown) {
  try {
    return isError(thrown) ? thrown.cause : undefined;
  } catch {
    return undefined;
  }
}

function isError(value) {
  return value instanceof Error || types.isNativeError(value);
}

/** The form of last resort: a circular structure, or an object that throws when it is read. */
function plainForm(value) {
  try {
    return String(value);
  } catch {
    return '[object]';
  }
}

/**
 * A `JSON.stringify` replacer for what JSON has no form of. It looks at the value in its holder
 * because `toJSON` has already been applied to `converted`.
 */
function readable(key, converted) {
  const value = this[key];
  switch (typeof value) {
    case 'bigint':
    case 'symbol':
      return String(value);
    case 'number':
      return Number.isFinite(value) ? value : String(value);
    case 'undefined':
      return null;
    case 'object':
      return value === null ? null : readableObject(value, converted);
    default:
      return converted;
  }
}

function readableObject(value, converted) {
  if (types.isDate(value)) return Number.isNaN(value.getTime()) ? String(value) : converted;
  if (types.isSet(value)) return [...value];
  if (types.isMap(value)) return [...value];
  if (types.isTypedArray(value)) return Array.from(value);
  if (types.isAnyArrayBuffer(value)) return Array.from(new Uint8Array(value));
  if (types.isRegExp(value)) return String(value);
  if (isError(value)) return { name: value.name, message: value.message };
  return converted;
}

function cut(text) {
  if (text.length <= ENTRY_LIMIT) return text;
  return text.slice(0, wholeCharacters(text, ENTRY_LIMIT)) + CUT_NOTICE;
}

module.exports = { formatEntry, formatThrown, cut };
