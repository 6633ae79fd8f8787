package remoteblock

// tableValue is a value of a label, and where its postings are.
type tableValue struct {
	value    string
	postings int64
}

// readTable reads the values of the groups from, ..., to-1 of a label out of the table of
// postings offsets, whose bytes are resident. What it returns owns its memory.
func readTable(f file, n *labelName, from, to int) ([]tableValue, error) {
	r := n.tableRange(from, to)
	p := make([]byte, r.End-r.Start)
	if err := readFull(f, p, r.Start); err != nil {
		return nil, at(r.Start, err)
	}
	count := 0
	for i := from; i < to; i++ {
		count += int(n.groups[i].count)
	}
	if count > len(p)/3 {
		return nil, at(r.Start, damagef("%d values cannot be in %d bytes", count, len(p)))
	}
	values := make([]tableValue, 0, count)
	for i := from; i < to; i++ {
		g := n.tableRange(i, i+1)
		var err error
		if values, err = parseGroup(values, p[g.Start-r.Start:g.End-r.Start], n, i); err != nil {
			return nil, at(g.Start, err)
		}
	}
	return values, nil
}

// parseGroup appends the values of group i, whose entries are p.
func parseGroup(values []tableValue, p []byte, n *labelName, i int) ([]tableValue, error) {
	if castagnoli(p) != n.groups[i].crc {
		return nil, damagef("the postings offsets are not what they were when the block's header was made")
	}
	lists := n.postingsRange(i, i+1)
	c := cursor{b: p}
	for range n.groups[i].count {
		keys := c.uvarint()
		name, value, list := c.text(), c.text(), c.int63()
		if c.bad || keys != 2 || string(name) != n.name || list < lists.Start || list > lists.End {
			return nil, damagef("the postings offsets cannot be decoded")
		}
		values = append(values, tableValue{value: textOf(value), postings: list})
	}
	return values, nil
}
