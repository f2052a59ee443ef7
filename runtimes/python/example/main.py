"""Greets on GET (?name=you) and echoes JSON on POST."""


def main(context):
    context.log("called with", context.req.method, context.req.path)

    if context.req.method == "POST":
        return context.res.json({"received": context.req.body_json})

    name = context.req.query.get("name", "world")
    return context.res.text(f"Hello, {name}!\n")
