'use strict';

const greeting = require('greeting');

module.exports = ({ res }) => res.text(greeting);
