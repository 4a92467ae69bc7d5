{"sequence": 19, "journal": 2128646880, "changes": 0} 96458c5d                                                         
