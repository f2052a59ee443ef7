'use strict';

const { inspect } = require('node:util');

const NAMES = [
  'method',
  'scheme',
  'host',
  'port',
  'path',
  'url',
  'queryString',
  'query',
  'headers',
  'bodyBinary',
  'bodyText',
  'bodyRaw',
  'body',
  'bodyJson',
];

/** The members of `context.req`, each made when it is first read and the same ever after. */
class Request {
  #frame;
  #query;
  #headers;
  #text;
  #json;

  constructor(frame) {
    this.#frame = frame;
  }

  get method() {
    return this.#frame.method;
  }

  get scheme() {
    return this.#frame.scheme;
  }

  get host() {
    return this.#frame.host;
  }

  get port() {
    return this.#frame.port;
  }

  get path() {
    return this.#frame.path;
  }

  get url() {
    return this.#frame.url;
  }

  get queryString() {
    return this.#frame.queryString;
  }

  get query() {
    return (this.#query ??= this.#frame.query());
  }

  get headers() {
    return (this.#headers ??= this.#frame.headers());
  }

  get bodyBinary() {
    return this.#frame.body;
  }

  get bodyText() {
    return (this.#text ??= this.#frame.body.toString());
  }

  get bodyRaw() {
    return this.bodyText;
  }

  get bodyJson() {
    return (this.#json ??= { value: JSON.parse(this.bodyText) }).value;
  }

  get body() {
    const type = this.headers['content-type'] ?? '';
    if (!type.toLowerCase().startsWith('application/json')) return this.bodyText;
    if (this.#frame.body.length === 0) this.#json ??= { value: {} };
    return this.bodyJson;
  }

  [inspect.custom]() {
    return settle(this);
  }
}

/**
 * Turns a request into a plain object with plain properties. A member that cannot be read, such as
 * the JSON of a body that is not JSON, stays a getter that throws, and is not enumerated.
 */
function settle(request) {
  if (Object.getPrototypeOf(request) !== Request.prototype) return request;
  const properties = {};
  for (const name of NAMES) properties[name] = settled(request, name);
  Object.defineProperties(request, properties);
  return Object.setPrototypeOf(request, Object.prototype);
}

function settled(request, name) {
  try {
    return { value: request[name], writable: true, enumerable: true, configurable: true };
  } catch (error) {
    const get = () => {
      throw error;
    };
    return { get, enumerable: false, configurable: true };
  }
}

const settling =
  (operation) =>
  (request, ...rest) =>
    operation(settle(request), ...rest);

// Reading a member goes to the getters above. Everything that could tell a getter from a property
// first settles the request. Fourteen properties on each request, most of them never read, would
// cost more than all the rest of a call.
const plainProperties = {
  get: (request, name) => request[name],
  set: (request, name, value) => Reflect.set(settle(request), name, value),
  ownKeys: settling(Reflect.ownKeys),
  getOwnPropertyDescriptor: settling(Reflect.getOwnPropertyDescriptor),
  defineProperty: settling(Reflect.defineProperty),
  deleteProperty: settling(Reflect.deleteProperty),
  getPrototypeOf: settling(Reflect.getPrototypeOf),
  setPrototypeOf: settling(Reflect.setPrototypeOf),
  preventExtensions: settling(Reflect.preventExtensions),
};

/** The `context.req` of a call whose body is complete. */
function createRequest(frame) {
  return new Proxy(new Request(frame), plainProperties);
}

module.exports = { createRequest };
