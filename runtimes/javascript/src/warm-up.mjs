/** What an ordinary function does; see prepare.js. */
export default async ({ req, res, log }) => {
  log('warm', { method: req.method });
  return res.json({ path: req.path, body: req.body, query: req.query, headers: req.headers });
};
