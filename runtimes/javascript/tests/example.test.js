'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const test = require('node:test');
const { bindWorker } = require('./support.js');

const SOURCE = fs.readFileSync(path.join(__dirname, '../example/index.js'), 'utf8');

test('the example greets, logs and echoes', async (t) => {
  const host = await bindWorker(t, SOURCE);
  const greeting = await host.call({ path: '/hi', query: [['name', 'Ada']] });
  assert.deepEqual([greeting.text, greeting.logs], ['Hello, Ada!\n', ['GET /hi']]);
  assert.equal((await host.call()).text, 'Hello, world!\n');
  const echo = await host.call({ method: 'POST', body: '{"a": 1}' });
  assert.equal(echo.text, '{"received":{"a":1}}');
});
