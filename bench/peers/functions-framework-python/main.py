def hello(request):
    return "Hello, World!", 200, {"content-type": "text/plain; charset=utf-8"}
