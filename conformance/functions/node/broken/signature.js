'use strict';

module.exports = { other: 1 };
