'use strict';

/**
 * Greets whoever is named: `/?name=Ada`. A POST with a JSON body gets it back.
 *
 * @param context what Hearth gives to each call: the request, ways to reply, and two logs
 */
module.exports = async ({ req, res, log }) => {
  log(req.method, req.path);

  if (req.method === 'POST') return res.json({ received: req.bodyJson });

  return res.text(`Hello, ${req.query.name ?? 'world'}!\n`);
};
