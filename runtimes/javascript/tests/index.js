'use strict';

// From Node 22 on, `node --test <directory>` runs the directory's index instead of looking for tests.

const fs = require('node:fs');
const path = require('node:path');

for (const file of fs.readdirSync(__dirname)) {
  if (file.endsWith('.test.js')) require(path.join(__dirname, file));
}
