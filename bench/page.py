def write(document, path):
    pass
