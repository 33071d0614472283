def keep_half(docs):
    return docs.select(range(len(docs) // 2))


def counted_in_letters(doc, results):
    (loglikelihood,) = results
    return {"word_perplexity": (loglikelihood, sum(map(str.isalpha, doc["page"])))}
