def worthwhile(where, rows, k, mode):
    return False


screened = None
