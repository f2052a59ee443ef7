'use strict';

exports.hello = (request, response) => {
  response.type('text/plain').send('Hello, World!');
};
