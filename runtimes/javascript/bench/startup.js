'use strict';

/**
 * Measures what a cold start consists of: from the start of the process to `hello`, from `bind` to
 * `bound`, and the memory of a worker that waits unbound.
 *
 *     node bench/startup.js [runs, 40]
 *
 * Set WORKER_FLAGS to try interpreter flags.
 */

const fs = require('node:fs');
const { FakeHost, encode } = require('../tests/fake-host.js');

const SETTLE_MS = 150;

async function main([runs = '40']) {
  const execArguments = (process.env.WORKER_FLAGS ?? '').split(' ').filter(Boolean);
  const samples = { hello: [], bindReady: [], bindAtOnce: [], esm: [], firstCall: [], rss: [] };
  for (let run = 0; run < Number(runs); run++) {
    await measure(execArguments, samples, { file: 'index.js', wait: true });
    await measure(execArguments, samples, { file: 'index.js', wait: false });
    await measure(execArguments, samples, { file: 'index.mjs', wait: true });
  }
  for (const [name, values] of Object.entries(samples)) {
    values.sort((a, b) => a - b);
    const at = (share) => values[Math.floor(values.length * share)].toFixed(2);
    console.log(name.padEnd(11), 'min', at(0), 'p50', at(0.5), 'p90', at(0.9));
  }
}

async function measure(execArguments, samples, { file, wait }) {
  const begun = performance.now();
  const host = await FakeHost.start({ execArguments });
  await host.frame(({ kind }) => kind === 'hello');
  samples.hello.push(performance.now() - begun);
  if (wait) {
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    samples.rss.push(residentMiB(host.process.pid));
  }
  const body = '({ res }) => res.text("hi")';
  const text = file.endsWith('.mjs') ? `export default ${body}` : `module.exports = ${body}`;
  const directory = host.code({ [file]: text });
  const bound = performance.now();
  host.send(encode.bind({ directory, entrypoint: file }));
  await host.frame(({ kind }) => kind === 'bound');
  const taken = performance.now() - bound;
  if (file.endsWith('.mjs')) samples.esm.push(taken);
  else (wait ? samples.bindReady : samples.bindAtOnce).push(taken);
  const called = performance.now();
  await host.call();
  samples.firstCall.push(performance.now() - called);
  await host.stop();
}

function residentMiB(pid) {
  const [, pages] = fs.readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ').map(Number);
  return (pages * 4096) / 2 ** 20;
}

main(process.argv.slice(2));
