'use strict';

/**
 * Measures one worker behind the fake host of the tests:
 *
 *     node bench/load.js [calls in flight, 16] [seconds, 5] [function, json]
 *
 * Driver and worker share the machine, so the numbers compare versions and settings; they are not
 * those of the real host. Set WORKER_FLAGS to try interpreter flags.
 */

const { FakeHost, encode } = require('../tests/fake-host.js');

const FUNCTIONS = {
  text: "module.exports = ({ res }) => res.text('hello')",
  json: 'module.exports = async ({ req, res }) => res.json({ path: req.path, query: req.query })',
  log: "module.exports = async ({ req, res, log }) => { log('called', req.path); return res.text('ok') }",
};

const HEADERS = [
  ['host', 'localhost:3000'],
  ['user-agent', 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0'],
  ['accept', 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8'],
  ['accept-encoding', 'gzip, deflate, br'],
  ['cookie', 'session=0123456789abcdef; theme=dark'],
];

async function main([inFlight = '16', seconds = '5', name = 'json']) {
  const execArguments = (process.env.WORKER_FLAGS ?? '').split(' ').filter(Boolean);
  const host = await FakeHost.start({ execArguments });
  await host.bind({ 'index.js': FUNCTIONS[name] });
  await run(host, Number(inFlight), 1);
  const { calls, elapsed, latencies } = await run(host, Number(inFlight), Number(seconds));
  const at = (share) => `${latencies[Math.floor(latencies.length * share)].toFixed(1)} µs`;
  console.log(
    `${name}, ${inFlight} in flight: ${Math.round(calls / elapsed)} calls/s,`,
    `p50 ${at(0.5)}, p99 ${at(0.99)}`,
  );
  await host.stop();
}

/** Keeps `inFlight` calls going; each answered one starts the next. */
function run(host, inFlight, seconds) {
  const template = encode.call(1, {
    url: 'http://localhost:3000/hello?a=1',
    path: '/hello',
    queryString: 'a=1',
    query: [['a', '1']],
    headers: HEADERS,
  });
  const frames = Array.from({ length: inFlight }, (_, slot) => {
    const frame = Buffer.from(template);
    frame.writeUInt32BE(1 + slot, 5);
    return frame;
  });
  const started = frames.map(() => process.hrtime.bigint());
  const begun = process.hrtime.bigint();
  const until = begun + BigInt(seconds * 1e9);
  const latencies = [];
  let calls = 0;
  let open = inFlight;
  let held = Buffer.alloc(0);

  return new Promise((resolve) => {
    const finish = (now) => {
      host.socket.removeAllListeners('data');
      latencies.sort((a, b) => a - b);
      resolve({ calls, elapsed: Number(now - begun) / 1e9, latencies });
    };
    host.socket.removeAllListeners('data');
    host.socket.on('data', (data) => {
      const bytes = held.length > 0 ? Buffer.concat([held, data]) : data;
      const now = process.hrtime.bigint();
      const next = [];
      let at = 0;
      while (bytes.length - at >= 4 && bytes.length - at >= 4 + bytes.readUInt32BE(at)) {
        if (bytes[at + 4] === 0x84) {
          const slot = bytes.readUInt32BE(at + 5) - 1;
          latencies.push(Number(now - started[slot]) / 1e3);
          calls += 1;
          if (now < until) next.push(frames[slot]);
          else open -= 1;
          started[slot] = now;
        }
        at += 4 + bytes.readUInt32BE(at);
      }
      held = bytes.subarray(at);
      if (next.length > 0) host.socket.write(next.length === 1 ? next[0] : Buffer.concat(next));
      if (open === 0) finish(now);
    });
    host.socket.write(Buffer.concat(frames));
  });
}

main(process.argv.slice(2));
