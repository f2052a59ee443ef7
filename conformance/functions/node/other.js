'use strict';

module.exports = ({ res }) => res.text('other');
