'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { formatThrown, cut } = require('./format.js');

const Reason = Object.freeze({ NO_FILE: 1, NO_FUNCTION: 2, SYNTAX: 3, NO_MODULE: 4, OTHER: 5 });

const MISSING_MODULE_CODES = ['MODULE_NOT_FOUND', 'ERR_MODULE_NOT_FOUND'];
const OWN_FILES = __dirname + path.sep;

/** Why the code cannot be bound, as the host wants to hear it. */
class LoadFailure extends Error {
  constructor(reason, message) {
    super(message);
    this.reason = reason;
  }
}

/** One function's code: where it is, how to load it, and how to speak of its errors. */
class FunctionCode {
  #directory;
  #entrypoint;
  #file;

  constructor(directory, entrypoint) {
    this.#directory = path.resolve(directory);
    this.#entrypoint = entrypoint;
    this.#file = path.resolve(directory, entrypoint);
  }

  /** Whether the entrypoint is one of the function's own files. */
  #isWithin() {
    return this.#file.startsWith(this.#directory + path.sep);
  }

  /**
   * Loads the entrypoint and returns its function.
   *
   * @throws {LoadFailure}
   */
  async load() {
    if (!this.#isWithin() || !isFile(this.#file)) {
      const message = `Failed to load entrypoint, file ${this.#entrypoint} does not exist.`;
      throw new LoadFailure(Reason.NO_FILE, message);
    }
    // Traces name files by what they really are.
    this.#directory = fs.realpathSync(this.#directory);
    const exported = await this.#evaluate();
    const candidate = typeof exported === 'function' ? exported : exported?.default;
    if (typeof candidate === 'function') return candidate;
    const message = "Function signature invalid. Did you forget to export a 'main' function?";
    throw new LoadFailure(Reason.NO_FUNCTION, message);
  }

  /** The errors file's text for something that the function threw. */
  describe(thrown) {
    const text = this.#withoutOwnFrames(formatThrown(thrown));
    const names = this.#entrypoint !== '' && text.includes(this.#entrypoint);
    return cut(names ? text : `${text}\n    at ${this.#file}`);
  }

  async #evaluate() {
    try {
      return await evaluate(fs.realpathSync(this.#file), this.#directory);
    } catch (thrown) {
      throw this.#failure(thrown);
    }
  }

  #failure(thrown) {
    const message = this.#messageOf(thrown);
    const details = this.#detailsOf(thrown);
    const text = (first) => cut([first, ...details].join('\n'));
    if (thrown instanceof SyntaxError) {
      return new LoadFailure(
        Reason.SYNTAX,
        text(`Syntax error in ${this.#entrypoint}: ${message}`),
      );
    }
    if (MISSING_MODULE_CODES.includes(thrown?.code)) {
      return new LoadFailure(Reason.NO_MODULE, text(`Failed to load module: ${message}`));
    }
    if (thrown instanceof TypeError) return new LoadFailure(Reason.OTHER, text(message));
    return new LoadFailure(Reason.OTHER, text(`Failed to load module: ${message}`));
  }

  /** What was thrown without its trace, and without the worker in a list of requiring files. */
  #messageOf(thrown) {
    const text = thrown instanceof Error ? String(thrown.message) : formatThrown(thrown);
    return text
      .split('\n')
      .filter((line) => !this.#isOwn(line))
      .join('\n');
  }

  /** The lines of a trace that lead to the user's code. */
  #detailsOf(thrown) {
    if (!(thrown instanceof Error)) return [];
    const lines = String(thrown.stack).split('\n');
    const firstFrame = lines.findIndex(isFrame);
    const frames = lines.filter((line) => isFrame(line) && line.includes(this.#directory));
    if (!(thrown instanceof SyntaxError)) return frames;
    const excerpt = excerptOf(thrown, lines.slice(0, Math.max(firstFrame, 0)));
    return [...(excerpt.length > 0 ? excerpt : checkSyntax(this.#file)), ...frames];
  }

  /** Takes the worker out of a trace, and what is below the function: nobody can change either. */
  #withoutOwnFrames(text) {
    const lines = text.split('\n');
    const isOwnFrame = (line) => isFrame(line) && this.#isOwn(line);
    if (!lines.some(isOwnFrame)) return text;
    const last = lines.findLastIndex((line) => isFrame(line) && line.includes(this.#directory));
    return lines.filter((line, i) => !isFrame(line) || (i <= last && !isOwnFrame(line))).join('\n');
  }

  #isOwn(line) {
    return line.includes(OWN_FILES) && !line.includes(this.#directory);
  }
}

function isFile(file) {
  return fs.statSync(file, { throwIfNoEntry: false })?.isFile() ?? false;
}

async function evaluate(file, directory) {
  if (isEcmaScriptModule(file, directory)) return importFile(file);
  try {
    return require(file);
  } catch (error) {
    // ECMAScript by its syntax alone, which `require` loads unless it awaits at the top level. It
    // is refused before any of it has run.
    if (error?.code === 'ERR_REQUIRE_ASYNC_MODULE') return importFile(file);
    throw error;
  }
}

function importFile(file) {
  return import(require('node:url').pathToFileURL(file).href);
}

/**
 * Whether a file is an ECMAScript module by its name or by its package. Trying `require` first and
 * `import` after a failure would run the same code twice, or warn on versions where both work.
 */
function isEcmaScriptModule(file, directory) {
  const extension = path.extname(file);
  if (extension === '.mjs' || extension === '.mts') return true;
  if (extension === '.cjs' || extension === '.cts') return false;
  return packageType(path.dirname(file), directory) === 'module';
}

/** The `type` of the nearest package.json from `from` up to the code directory. */
function packageType(from, directory) {
  for (let at = from; ; at = path.dirname(at)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8')).type;
    } catch (error) {
      if (error.code !== 'ENOENT') return undefined;
    }
    if (at === directory || at === path.dirname(at)) return undefined;
  }
}

function isFrame(line) {
  return line.startsWith('    at ');
}

/** The place and the source line that Node puts in front of a syntax error's message. */
function excerptOf(error, lines) {
  const end = lines.findIndex((line) => line.startsWith(`${error.name}:`));
  return lines.slice(0, Math.max(end, 0)).filter((line) => line !== '');
}

/** Node keeps the place of a syntax error in an ECMAScript module to itself, except here. */
function checkSyntax(file) {
  const { spawnSync } = require('node:child_process');
  const { stderr } = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8', env: {} });
  const lines = (stderr ?? '').split('\n');
  const end = lines.findIndex((line) => line.startsWith('SyntaxError:'));
  return lines.slice(0, Math.max(end, 0)).filter((line) => line !== '');
}

module.exports = { FunctionCode, LoadFailure };
