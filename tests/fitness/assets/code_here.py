def keep_half(docs):
    return docs.select(range(len(docs) // 2))
