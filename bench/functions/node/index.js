'use strict';

module.exports = (context) => {
  if (context.req.path === '/log') context.log('one line');
  return context.res.text('Hello, World!');
};
