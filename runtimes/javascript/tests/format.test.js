'use strict';

const assert = require('node:assert/strict');
const test = require('node:test');
const vm = require('node:vm');
const { formatEntry, formatThrown } = require('../src/format.js');

const CUT = '... Log truncated due to size limit (8000 characters)';

test('values become text', () => {
  const circular = {};
  circular.self = circular;
  const table = [
    ['text', 'text'],
    ['', ''],
    [42, '42'],
    [true, 'true'],
    [null, 'null'],
    [undefined, 'undefined'],
    [NaN, 'NaN'],
    [123456789012345678901234567890n, '123456789012345678901234567890'],
    [Symbol('s'), 'Symbol(s)'],
    [{ hello: 'world' }, '{"hello":"world"}'],
    [['hello', 1], '["hello",1]'],
    [{ big: 9007199254740993n }, '{"big":"9007199254740993"}'],
    [
      { none: undefined, sign: Symbol('s'), far: -Infinity },
      '{"none":null,"sign":"Symbol(s)","far":"-Infinity"}',
    ],
    [new Date(0), '"1970-01-01T00:00:00.000Z"'],
    [new Date(NaN), '"Invalid Date"'],
    [new Set(['a', 'b']), '["a","b"]'],
    [new Map([['a', new Set([1])]]), '[["a",[1]]]'],
    [new URL('https://example.org/a?b'), '"https://example.org/a?b"'],
    [/a+/g, '"/a+/g"'],
    [new Uint16Array([1, 500]), '[1,500]'],
    [Buffer.from('ab'), '[97,98]'],
    [new Uint8Array([7]).buffer, '[7]'],
    [{ inner: new RangeError('r') }, '{"inner":{"name":"RangeError","message":"r"}}'],
    [circular, '[object Object]'],
    [
      Object.assign(Object.create(null), {
        toJSON: () => {
          throw new Error();
        },
      }),
      '[object]',
    ],
  ];
  for (const [value, expected] of table) assert.equal(formatEntry([value]), expected);
});

test('a function is its source', () => {
  assert.equal(formatEntry([(a) => a + 1]), '(a) => a + 1');
});

test('an error is its stack', () => {
  const error = new TypeError('bad');
  assert.equal(formatEntry([error]), error.stack);
  const foreign = vm.runInNewContext("new Error('foreign')");
  assert.equal(formatEntry([foreign]), foreign.stack);
  delete error.stack;
  error.stack = undefined;
  assert.equal(formatEntry([error]), 'TypeError: bad');
});

test('values are joined by one space and nothing else is added', () => {
  assert.equal(formatEntry(['a', 1, { b: 2 }]), 'a 1 {"b":2}');
  assert.equal(formatEntry([]), '');
});

test('an entry is cut after 8000 units', () => {
  assert.equal(formatEntry(['x'.repeat(8000)]), 'x'.repeat(8000));
  assert.equal(formatEntry(['x'.repeat(8001)]), 'x'.repeat(8000) + CUT);
});

test('a cut does not leave half a character', () => {
  assert.equal(formatEntry([`${'x'.repeat(7999)}😀`]), 'x'.repeat(7999) + CUT);
  assert.equal(formatEntry([`${'x'.repeat(7998)}😀y`]), `${'x'.repeat(7998)}😀${CUT}`);
});

test('what was thrown is told with its causes', () => {
  const text = formatThrown(new Error('outer', { cause: new Error('inner', { cause: 'root' }) }));
  assert.match(text, /^Error: outer\n {4}at [^]*\nCaused by: Error: inner\n[^]*\nCaused by: root$/);
  const own = new Error('own');
  own.cause = own;
  assert.equal(formatThrown(own).match(/Caused by/g).length, 4);
});
