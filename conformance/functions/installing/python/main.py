from conformance_greeting import GREETING


def main(context):
    return context.res.text(GREETING)
