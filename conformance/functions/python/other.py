def main(context):
    return context.res.text("other")
